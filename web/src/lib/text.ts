/** Tokens as text that can be seen: white space, control, zero-width and direction characters have glyphs, lone bytes
 * their number. Copying gives the text itself. */
const GLYPHS: Record<string, string> = { "\n": "↵", "\r": "␍", "\t": "→" };
const ODD = /([\n\r\t ]|[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u115f\u1160\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\u3164\ufe00-\ufe0f\ufeff\ufffd\ufff9-\ufffb])/u;
const BYTE = /^<0x([0-9A-F]{2})>$/i;

export interface Piece {
  kind: "text" | "space" | "glyph" | "byte";
  text: string;
  /** What is drawn in its place. */
  glyph?: string;
}
export function pieces(token: string): Piece[] {
  const byte = BYTE.exec(token);
  if (byte) return [{ kind: "byte", text: token, glyph: byte[1].toUpperCase() }];
  return token.split(ODD).filter((part) => part !== "").map((part) => {
    if (part === " ") return { kind: "space", text: part };
    if (!ODD.test(part) || part === "\ufffd") return { kind: "text", text: part };
    return { kind: "glyph", text: part, glyph: GLYPHS[part] ?? `⟨${part.codePointAt(0)!.toString(16).toUpperCase().padStart(4, "0")}⟩` };
  });
}
const TYPED: [string, string][] = [[" ", "␣"], ["\n", "↵"], ["\t", "→"]];
/** What is typed, with white space that can be seen: blanks as they are typed, line break and tab as `\n` and `\t`. */
export const shownInput = (text: string): string =>
  TYPED.reduce((all, [own, glyph]) => all.replaceAll(own, glyph), text.replace(/\\n/g, "\n").replace(/\\t/g, "\t"));
export const readInput = (text: string): string => TYPED.reduce((all, [own, glyph]) => all.replaceAll(glyph, own), text);
/** A token in words, for a screen reader and for titles. */
export const inWords = (token: string): string =>
  pieces(token).map((piece) => (piece.kind === "text" ? piece.text : piece.kind === "space" ? "␣" : piece.glyph)).join("");
