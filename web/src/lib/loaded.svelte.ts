/** Something asked of the source, with what it waits for and what it was refused. */
import type { Columns } from "./features";
import { source, type Place } from "./source";

export interface Loaded<T> {
  readonly value: T | undefined;
  readonly error: string;
  readonly waits: boolean;
}
/** The answer to a question, asked again when what it reads changes; a later answer never gives way to an earlier one. */
export function loaded<T>(question: () => Promise<T>): Loaded<T> {
  let value = $state.raw<T | undefined>(undefined);
  let error = $state("");
  let waits = $state(true);
  let turn = 0;
  $effect(() => {
    const own = ++turn;
    waits = true;
    question().then(
      (answer) => own === turn && ((value = answer), (error = ""), (waits = false)),
      (reason) => own === turn && ((value = undefined), (error = reason.message ?? `${reason}`), (waits = false)),
    );
  });
  return {
    get value() {
      return value;
    },
    get error() {
      return error;
    },
    get waits() {
      return waits;
    },
  };
}
/** The columns of places, those that have none left out. */
export const columnsOf = (places: () => Place[]): Loaded<Columns[]> =>
  loaded(async () => (await Promise.all(places().map((place) => source.columns(place)))).filter((one): one is Columns => one !== null));
