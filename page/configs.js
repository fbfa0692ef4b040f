// Reads configs from the API, and finds the places in them that the server's sentences name.

import * as api from './api.js';
import { format, parse } from './json.js';

// configIn returns the config in the text of a response, laid out.
export function configIn(text) { return layOut(/^\s*{\s*"config"\s*:([^]*)}\s*$/.exec(text)[1]); }

// layOut returns a text with each member on a line of its own, or as it is if it is not JSON.
export function layOut(text) {
  try {
    return format(text);
  } catch {
    return text;
  }
}

// compact returns valid JSON without white space: its layout might make a large config too large for a request.
export function compact(text) { return text.replace(/("[^"\\]*(?:\\.[^"\\]*)*")|\s+/g, '$1'); }

// tagOf returns the ETag of a response, strong again if a proxy that compresses has made it weak.
export function tagOf(answer) { return answer.headers.get('ETag').replace(/^W\//, ''); }

// readConfig returns the config as the server has it: { etag, text }. The server does not show one that is broken in
// Redis: then etag and text are '', and error is what it says.
export async function readConfig(signal) {
  try {
    const answer = await api.request('GET', api.path`/admin/config`, { signal });
    return { etag: tagOf(answer), text: configIn(answer.text) };
  } catch (error) {
    if (error.status !== 500) throw error;
    error.errors = ['The config in Redis cannot be used; the log says why. Restore a version of the History, or ' +
      'enter a whole config and save it.'];
    return { etag: '', text: '', error };
  }
}

// A path as the server writes it: user_groups.anonymous, names["with other bytes"], list[0].
const step = /(?:^|\.)([\w-]+)|\[(\d+)\]|\["((?:[^"\\]|\\.)*)"\]/y;
const prefix = 'Invalid config: ';

// pathIn returns the path that a sentence starts with, its place there, and its names (strings) and indexes (numbers).
function pathIn(sentence) {
  const start = sentence.startsWith(prefix) ? prefix.length : 0;
  const text = sentence.slice(start);
  const steps = [];
  let end = 0;
  for (;;) {
    step.lastIndex = end;
    const match = step.exec(text);
    if (!match) return { path: text.slice(0, end), pathStart: start, steps };
    const [, word, index, quoted] = match;
    steps.push(index === undefined ? word ?? unquote(quoted) : Number(index));
    end = step.lastIndex;
  }
}

const controls = new Map([['a', '\x07'], ['b', '\b'], ['f', '\f'], ['n', '\n'], ['r', '\r'], ['t', '\t'], ['v', '\v']]);

// unquote returns what a string in the notation of Go spells.
function unquote(text) {
  return text.replace(/\\(?:x(..)|u(.{4})|U(.{8})|(.))/g, (_, x, u, U, letter) => letter === undefined
    ? String.fromCodePoint(parseInt(x ?? u ?? U, 16)) : controls.get(letter) ?? letter);
}

// placeOf returns where the path that a sentence starts with leads: { path, pathStart }, as the sentence has it, and
// { start, end }, the place in the text of the last part that exists there. It returns null if no part does, or if the
// text is not JSON.
export function placeOf(text, sentence) {
  const { path, pathStart, steps } = pathIn(sentence);
  if (!steps.length) return null;
  let node;
  try {
    node = parse(text);
  } catch {
    return null;
  }
  let place = null;
  for (const one of steps) {
    const found = typeof one === 'number' ? itemOf(node, one) : memberOf(node, one);
    if (!found) break;
    node = found.node;
    const end = node.members || node.items ? node.start + 1 : node.end; // only the start of what may be large
    place = { path, pathStart, start: found.start, end };
  }
  return place;
}

function itemOf(node, index) {
  const item = node.items?.[index];
  return item && { node: item, start: item.start };
}

// memberOf finds the member with a name. Of several the last is the one that the server means. It cuts long names and
// adds …
function memberOf(node, name) {
  const is = (test) => node.members?.findLast((member) => test(member.name));
  const found = is((other) => other === name) ??
    (name.endsWith('…') ? is((other) => other.startsWith(name.slice(0, -1))) : undefined);
  return found && { node: found.node, start: found.nameStart };
}
