/** Breaks text into lines of a given width. How wide a text is, the caller says. */

export type Measure = (text: string) => number;

/** One word that is too wide, in pieces: at its humps, as in `Resume-Requested`, at an underscore, else anywhere. */
function pieces(word: string, width: number, measure: Measure): string[] {
  const out: string[] = [];
  let piece = "";
  for (const part of word.split(/(?<=[a-z])(?=[A-Z])|(?<=_)/)) {
    if (piece && measure(`${piece}${part}-`) > width) {
      out.push(piece.endsWith("_") || measure(`${piece}-`) > width ? piece : `${piece}-`);
      piece = "";
    }
    piece += part;
  }
  return [...out, piece].flatMap((part) => (measure(part) > width ? letters(part, width, measure) : [part]));
}

/** A word in pieces that are as long as may be. */
function letters(word: string, width: number, measure: Measure): string[] {
  const out: string[] = [];
  let piece = "";
  for (const letter of word) {
    if (piece && measure(piece + letter) > width) {
      out.push(piece);
      piece = "";
    }
    piece += letter;
  }
  return [...out, piece];
}

/** The lines of a text. Breaks at spaces, within a word only if it is wider than a line. */
export function wrap(text: string, width: number, measure: Measure): string[] {
  const lines: string[] = [];
  let line = "";
  const words = text.split(" ").flatMap((word) => (measure(word) > width ? pieces(word, width, measure) : [word]));
  for (const word of words) {
    const longer = line ? `${line} ${word}` : word;
    if (line && measure(longer) > width) {
      lines.push(line);
      line = word;
    } else line = longer;
  }
  return [...lines, line];
}

/** The page's fonts; the same stand in styles.css. */
export const FAMILY = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif';

/** Measures with the page's canvas; remembers what it has measured. */
export function canvasMeasure(font: string): Measure {
  const context = document.createElement("canvas").getContext("2d");
  const known = new Map<string, number>();
  return (text) => {
    const before = known.get(text);
    if (before !== undefined) return before;
    if (context) context.font = font;
    const width = context ? context.measureText(text).width : text.length * 7;
    known.set(text, width);
    return width;
  };
}
