/** What there is to show. */
import { DATA } from "./data";

/** Whether features of any place are at hand. */
export const hasFeatures =
  DATA.instruments.length > 0 && (DATA.served || Object.keys(DATA.features ?? {}).length > 0);
export const hasVerdicts = Boolean(DATA.tables.verdicts);
