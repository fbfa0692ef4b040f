// Reads configs from the API, and finds the places in them that the server's sentences name.

import * as api from './api.js';
import { format, parse } from './json.js';

export function configIn(text) { return layOut(/^\s*{\s*"config"\s*:([^]*)}\s*$/.exec(text)[1]); }

// layOut returns a text with each member on a line of its own, or as it is if it is not JSON.
export function layOut(text) {
  try {
    return format(text);
  } catch {
    return text;
  }
}

// compact returns valid JSON without white space, which might make a large config too large for a request.
export function compact(text) { return text.replace(/("[^"\\]*(?:\\.[^"\\]*)*")|\s+/g, '$1'); }

// tagOf returns the ETag of a response, strong again if a proxy that compresses has made it weak.
export function tagOf(answer) { return answer.headers.get('ETag').replace(/^W\//, ''); }

// readConfig returns the config as the server has it: { etag, text }. The server does not show one that is broken in
// Redis: then both are '', and error is what it says.
export async function readConfig(signal) {
  try {
    const answer = await api.request('GET', api.path`/admin/config`, { signal });
    return { etag: tagOf(answer), text: configIn(answer.text) };
  } catch (error) {
    if (error.status !== 500) throw error;
    error.errors = ['The config in Redis cannot be used; the log says why. Restore a version of the History, or save ' +
      'a whole config.'];
    return { etag: '', text: '', error };
  }
}

// A step of a path as the server writes it: user_groups.anonymous, names["with other bytes"], list[0].
const step = /(?:^|\.)([\w-]+)|\[(\d+)\]|\[("(?:[^"\\]|\\.)*")\]/y;

// placeOf returns where the path leads that a sentence starts with: { before, path, after } are parts of the sentence,
// { start, end } is the place in the text of the last member on the path that exists. It returns null if none does.
export function placeOf(text, sentence) {
  const [before] = /^(Invalid config: )?/.exec(sentence);
  const rest = sentence.slice(before.length);
  let place = null;
  let at = 0;
  try {
    for (let node = parse(text), match; match = matchAt(rest, at); at = step.lastIndex) {
      const [, word, index, quoted] = match;
      const item = node?.items?.[index];
      const found = item ? { node: item, nameStart: item.start }
        : memberOf(node, word ?? (quoted && JSON.parse(quoted)));
      node = found?.node;
      if (node) place = { start: found.nameStart, end: node.members || node.items ? node.start + 1 : node.end };
    }
  } catch {
    return null; // the text is not JSON, or a name in quotes is not: Go has its own way to write control characters
  }
  return place && { ...place, before, path: rest.slice(0, at), after: rest.slice(at) };
}

function matchAt(text, at) {
  step.lastIndex = at;
  return step.exec(text);
}

// memberOf finds the last member with a name: of several it is the one that counts. The server ends a long name with …
function memberOf(node, name) {
  return node?.members?.findLast((one) => one.name === name ||
    name?.endsWith('…') && one.name.startsWith(name.slice(0, -1)));
}
