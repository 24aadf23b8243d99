// How connections spread lately: what each endpoint got between looks of this page. The share of all of them says little of an
// endpoint that came later than others.

/** Milliseconds back to the look that is compared with. */
const SPAN = 60_000;
/** Milliseconds between two looks that are remembered. */
const STEP = 5_000;

/** Remembers the looks at one Service. */
export function recent() {
  let looks = [];
  let now = null;

  /** Takes in the ports of a Service, as they were at a moment. */
  function note(at, ports) {
    const counts = new Map(ports.map((port) => [portKey(port), new Map(port.endpoints.map((endpoint) => [endpoint.address, endpoint.connections]))]));
    const fewer = now && [...counts].some(([port, endpoints]) => [...endpoints].some(([address, count]) => count < now.counts.get(port)?.get(address)));
    // Whoever counts fewer than before has begun anew.
    looks = fewer ? [] : looks.filter((look) => at - look.at <= SPAN + STEP);
    now = { at, counts };
    if (looks.length === 0 || at - looks.at(-1).at >= STEP) looks.push(now);
  }

  /** Of a port: the seconds, the connections in them, and the part of these that each address got. */
  function of(port) {
    const [key, base] = [portKey(port), looks[0]];
    const [counted, before] = [now.counts.get(key), base.counts.get(key)];
    // Who was not there before had none; of whom nobody counted before, nothing is known.
    const had = (address, count) => (before === undefined || before.has(address) ? (before?.get(address) ?? count) : 0);
    const got = new Map([...counted].map(([address, count = 0]) => [address, count - had(address, count)]));
    const all = [...got.values()].reduce((sum, count) => sum + count, 0);
    return { seconds: (now.at - base.at) / 1000, connections: all, share: (address) => (all > 0 ? got.get(address) / all : undefined) };
  }

  return { note, of };
}

/** What tells a port of a Service from its others. */
export function portKey(port) {
  return `${port.name}/${port.protocol}/${port.family}`;
}
