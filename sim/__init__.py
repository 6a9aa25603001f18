"""A deterministic world around the protocol of ``fsm``, and the engines that try to break it."""
