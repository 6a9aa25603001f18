/** The common scale of all that is drawn from left to right, a column a step. */

import { scaleLinear } from "d3-scale";

export interface Scale {
  /** Steps, the width of a column, and of all columns. */
  count: number;
  column: number;
  width: number;
  /** The same and what is left free at the right of them. */
  total: number;
  /** The left edge of a step's column. */
  left: (step: number) => number;
  middle: (step: number) => number;
  stepAt: (x: number) => number;
}

/** Fits `count` columns into a width if they are not narrower than 15 pixels then. `margin` is left free at the right. */
export function timeScale(count: number, available: number, margin = 0): Scale {
  const column = Math.max(15, Math.min(160, Math.floor((available - margin) / Math.max(1, count))));
  const x = scaleLinear([0, count], [0, count * column]);
  return {
    ...{ count, column, width: count * column, total: count * column + margin, left: x },
    middle: (step) => x(step + 0.5),
    stepAt: (at) => Math.max(0, Math.min(count - 1, Math.floor(x.invert(at)))),
  };
}

/** The steps whose columns are in view, with a few on either side. */
export function stepsInView(scale: Scale, left: number, width: number): [number, number] {
  return [scale.stepAt(left - 4 * scale.column), scale.stepAt(left + width + 4 * scale.column)];
}
