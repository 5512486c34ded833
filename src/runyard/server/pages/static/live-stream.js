// @ts-check
// A connection to /ui/stream that is opened again whenever it ends.

/** @typedef {{ type: "state", state: "waiting" | "live" | "away" | "out", version?: string, assets?: string, number?: number }} State */
/** @typedef {{ number: number, kind: string, target: string, what: string, details?: any }} Change */
/** @typedef {{ run: string }} Hint */
/** @typedef {State | { type: "change", change: Change } | { type: "hint", hint: Hint } | { type: "alive" } | { type: "reset" }} Message */

const RETRY_MS = 1500;
const SILENCE_MS = 40_000; // the server speaks every 15 seconds

export class Stream {
  /** @type {EventSource | undefined} */ #source;
  /** @type {State} */ state = { type: "state", state: "waiting" };
  #retry = 0;
  #silence = 0;

  /** @param {(message: Message) => void} tell */
  constructor(tell) {
    this.tell = tell;
  }

  open() {
    if (this.#source) return;
    clearTimeout(this.#retry);
    const source = (this.#source = new EventSource("/ui/stream"));
    this.#listen();
    source.addEventListener("hello", ({ data }) => this.#set({ state: "live", ...JSON.parse(data) }));
    source.addEventListener("change", ({ data }) => {
      const change = JSON.parse(data);
      this.state.number = change.number;
      this.#pass({ type: "change", change });
    });
    source.addEventListener("hint", ({ data }) => this.#pass({ type: "hint", hint: JSON.parse(data) }));
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
    this.#retry = setTimeout(() => this.open(), RETRY_MS);
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
