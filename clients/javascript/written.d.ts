/** One row, or any number of them: they go out in calls of 10,000 rows and at most 8 MB, one after the other. */
export type Rows<Row> = Row | Iterable<Row> | AsyncIterable<Row>;

export interface Options {
  /** Sent as `Authorization: Bearer`. */
  key?: string;
  /** A call fails when nothing comes for so long; with Infinity it waits. A RangeError from 2 ** 31 on. */
  timeoutMs?: number;
  /** For so long, and so often in all, is a call sent again where that helps and does no harm. */
  retryMs?: number;
  attempts?: number;
  /** In place of the global one. */
  fetch?: typeof fetch;
}

export declare class Foldin {
  constructor(url: string, options?: Options);
  readonly url: string;
}

/** A call failed. Without an answer `status` is 0 and `code` empty; `code` is empty, too, where what answered is no Foldin. */
export declare class FoldinError extends Error {
  readonly status: number;
  readonly code: Code;
  readonly detail: string;
  readonly requestId: string;
  readonly field: string | null;
  /** From 0, over all rows that were given. */
  readonly row: number | null;
  readonly retryAfterMs: number | null;
  /** Whether no whole answer came, so that it is not known whether the service has acted. */
  readonly isLost: boolean;
  /** How often the call was sent. */
  readonly attempts: number;
  /** Rows that were stored by the calls before this one. What the caller's own rows throw has it, too. */
  readonly accepted: number;
  /** What else the problem document has. */
  readonly more: Record<string, unknown>;
}
