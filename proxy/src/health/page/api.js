// The facts, from /api/v1/ of the address that the page came from.

/** What the proxy answered that is not a fact. */
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
  let answer;
  try {
    answer = await fetch(url, { signal, credentials: "omit" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "the proxy does not answer: it has ended, or the way to it is gone");
  }
  if (!answer.ok) {
    const body = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, body.error ?? `the proxy answers with code ${answer.status}`);
  }
  return answer.json();
}
