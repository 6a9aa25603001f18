/** Sizes and scroll positions of elements, as state. */

import type { RefObject } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";

/** The inner width of an element, 0 before it is known. */
export function useWidth(ref: RefObject<HTMLElement | null>): number {
  const [width, setWidth] = useState(0);
  useLayoutEffect(() => {
    const element = ref.current;
    if (!element) return;
    const read = (): void => setWidth(Math.floor(element.clientWidth));
    read();
    const observer = new ResizeObserver(read);
    observer.observe(element);
    return () => observer.disconnect();
  }, []);
  return width;
}

/** The part of an element that is scrolled into view. */
export interface View {
  left: number;
  top: number;
  width: number;
  height: number;
}

/** The view of a scrolling element; `dependency` is what its size hangs on. */
export function useView(ref: RefObject<HTMLElement | null>, dependency: unknown): View {
  const [view, setView] = useState<View>({ left: 0, top: 0, width: 1200, height: 800 });
  useEffect(() => {
    const element = ref.current;
    if (!element) return;
    let frame = 0;
    const read = (): void => {
      frame = 0;
      const { scrollLeft: left, scrollTop: top, clientWidth: width, clientHeight: height } = element;
      setView({ left, top, width, height });
    };
    const later = (): void => {
      if (!frame) frame = requestAnimationFrame(read);
    };
    read();
    element.addEventListener("scroll", later, { passive: true });
    const observer = new ResizeObserver(later);
    observer.observe(element);
    return () => {
      element.removeEventListener("scroll", later);
      observer.disconnect();
      cancelAnimationFrame(frame);
    };
  }, [dependency]);
  return view;
}

/** Scrolls the sequence diagram beside this one along with it. */
export function useTwin(ref: RefObject<HTMLElement | null>, on: boolean): void {
  useEffect(() => {
    const element = ref.current;
    if (!element || !on) return;
    const follow = (): void => {
      for (const twin of document.querySelectorAll<HTMLElement>(".sequence"))
        if (twin !== element && Math.abs(twin.scrollTop - element.scrollTop) > 1) twin.scrollTop = element.scrollTop;
    };
    element.addEventListener("scroll", follow, { passive: true });
    return () => element.removeEventListener("scroll", follow);
  }, [on]);
}

/** Whether the window is at least so many pixels wide. */
export function useWide(pixels: number): boolean {
  const query = window.matchMedia(`(min-width: ${pixels}px)`);
  const [wide, setWide] = useState(query.matches);
  useEffect(() => {
    // Paper is narrower than the window; what stands side by side stays so.
    const change = (): void => {
      if (!window.matchMedia("print").matches) setWide(query.matches);
    };
    query.addEventListener("change", change);
    return () => query.removeEventListener("change", change);
  }, []);
  return wide;
}

/** After each change: if what had the focus is gone, the steps have it, so that nobody who uses keys starts anew. */
export function useKeptFocus(): void {
  const last = useRef<Element | null>(null);
  useEffect(() => {
    const keep = (event: FocusEvent): void => {
      last.current = event.target instanceof Element ? event.target : null;
    };
    document.addEventListener("focusin", keep);
    return () => document.removeEventListener("focusin", keep);
  }, []);
  useLayoutEffect(() => {
    if (!last.current || last.current.isConnected || document.activeElement !== document.body) return;
    document.querySelector<HTMLElement>(".sequence")?.focus({ preventScroll: true });
  });
}

/** Whether the page is being printed: then all of it is to be there, in view or not. */
export function usePrinting(): boolean {
  const [printing, setPrinting] = useState(false);
  useEffect(() => {
    const begin = (): void => setPrinting(true);
    const end = (): void => setPrinting(false);
    window.addEventListener("beforeprint", begin);
    window.addEventListener("afterprint", end);
    return () => {
      window.removeEventListener("beforeprint", begin);
      window.removeEventListener("afterprint", end);
    };
  }, []);
  return printing;
}
