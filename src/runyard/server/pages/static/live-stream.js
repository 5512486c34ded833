// @ts-check
// A connection to /ui/stream that is opened again whenever it ends, and when more runs are watched.

/** @typedef {{ type: "state", state: "waiting" | "live" | "away" | "out", version?: string, assets?: string, number?: number }} State */
/** @typedef {{ number: number, kind: string, target: string, what: string, details?: any }} Change */
/** @typedef {{ run: string }} Hint */
/** New points of a watched run, after the one numbered `after`: step, time, epoch, values by key.
 * @typedef {{ run: string, after: number, rows: [number, number, number, Record<string, number>][] }} Points */
/** @typedef {State | { type: "points", points: Points } | { type: "change", change: Change } | { type: "hint", hint: Hint } | { type: "alive" } | { type: "reset" }} Message */

const RETRY_MS = 1500;
const SILENCE_MS = 40_000; // the server speaks every 15 seconds

export class Stream {
  /** @type {EventSource | undefined} */ #source;
  /** @type {State} */ state = { type: "state", state: "waiting" };
  /** @type {Set<string>} runs whose points the open connection brings */
  #watched = new Set();
  #retry = 0;
  #silence = 0;

  /** @param {(message: Message) => void} tell */
  constructor(tell) {
    this.tell = tell;
  }

  /** Open the connection, with the points of these runs.
   * @param {Iterable<string>} runs */
  open(runs) {
    const wanted = new Set(runs);
    if (this.#source && [...wanted].every((run) => this.#watched.has(run))) return;
    const after = this.#source && this.state.number;
    this.#source?.close();
    clearTimeout(this.#retry);
    this.#watched = wanted;
    const query = new URLSearchParams({ watch: [...wanted].join(",") });
    if (after !== undefined) query.set("after", String(after));
    const source = (this.#source = new EventSource(`/ui/stream?${query}`));
    this.#listen();
    source.addEventListener("hello", ({ data }) => this.#set({ state: "live", ...JSON.parse(data) }));
    source.addEventListener("change", ({ data }) => {
      const change = JSON.parse(data);
      this.state.number = change.number;
      this.#pass({ type: "change", change });
    });
    source.addEventListener("hint", ({ data }) => this.#pass({ type: "hint", hint: JSON.parse(data) }));
    source.addEventListener("points", ({ data }) => this.#pass({ type: "points", points: JSON.parse(data) }));
    source.addEventListener("reset", () => this.#pass({ type: "reset" }));
    source.addEventListener("alive", () => this.#pass({ type: "alive" }));
    source.addEventListener("error", () => this.#lose());
  }

  close() {
    clearTimeout(this.#retry);
    clearTimeout(this.#silence);
    this.#source?.close();
    this.#source = undefined;
  }

  /** @param {Message} message */
  #pass(message) {
    this.#listen();
    this.tell(message);
  }

  #listen() {
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => this.#lose(), SILENCE_MS);
  }

  /** @param {Omit<State, "type">} state */
  #set(state) {
    this.state = { type: "state", ...state };
    this.#pass(this.state);
  }

  async #lose() {
    this.close();
    this.#set({ ...this.state, state: "away" });
    clearTimeout(this.#silence);
    this.#retry = setTimeout(() => this.open(this.#watched), RETRY_MS);
    try {
      const response = await fetch("/ui/sessions");
      if (response.ok && !(await response.json()).signedIn) {
        this.close();
        this.#set({ state: "out" });
      }
    } catch {
      // The server does not answer; the retry will tell.
    }
  }
}
