// The facts, from /api/v1/ of the address that the page came from.

/** Milliseconds until a proxy that does not say how it is counts as one that hangs. */
const PATIENCE = 5_000;
/** The same for what may have to wait for its turn: up to 10 s, when many ask. */
const TURN = 15_000;

/** What the proxy answered that is not a fact. Without a code it answered nothing. */
export class Refused extends Error {
  constructor(code, text) {
    super(text);
    this.code = code;
  }
}

/** Asks for a path below /api/v1/. */
export async function ask(path, query = {}, signal = undefined) {
  const words = new URLSearchParams(Object.entries(query).filter(([, value]) => value !== undefined && value !== ""));
  const url = `/api/v1/${path}${words.size > 0 ? `?${words}` : ""}`;
  const patience = path === "node" ? PATIENCE : TURN;
  const late = AbortSignal.timeout(patience);
  try {
    const answer = await fetch(url, { signal: signal ? AbortSignal.any([signal, late]) : late, credentials: "omit" });
    if (answer.ok) return await answer.json();
    const body = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, body.error ?? `the proxy answers with code ${answer.status}`);
  } catch (error) {
    if (error instanceof Refused || error.name === "AbortError") throw error;
    if (error.name === "TimeoutError") throw new Refused(0, `The proxy has not answered for ${patience / 1000} s: it hangs, or the node has no time for it.`);
    if (error.name === "SyntaxError") throw new Refused(0, "What answers is not the proxy: its answer is no JSON.");
    throw new Refused(0, "The proxy does not answer: it has ended, or the way to it is gone.");
  }
}
