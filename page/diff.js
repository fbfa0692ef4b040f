// Compares texts by lines.

import { el } from './dom.js';

const mostEdits = 2000; // that are looked for: they cost their square in time and memory
const mostLines = 2000; // that are shown
const context = 3; // lines before and after a change that are shown with it

// difference returns an element that shows what turns a JSON text, as json.js formats it, into another. was and is say
// what the two are.
export function difference(before, after, was, is) {
  const blocks = blocksOf(compare(before, after));
  if (!blocks.length) return el('p', { class: 'faint' }, 'No difference, but perhaps for white space.');
  const nodes = [];
  let left = mostLines;
  for (const { path, lines } of blocks) {
    if (left <= 0) break;
    nodes.push(el('span', { class: 'faint' }, path.length ? path.join(' › ') : '…'));
    for (const { sign, text } of lines.slice(0, left)) {
      nodes.push(el(tags.get(sign), {}, `${sign} ${text}`));
    }
    left -= lines.length;
  }
  return el('div', {}, el('p', { class: 'hint' }, `− ${was}, + ${is}`), el('pre', { class: 'diff' }, nodes),
    left < 0 && el('p', { class: 'hint' }, `Only the first ${mostLines} lines are shown.`));
}

const tags = new Map([[' ', 'span'], ['−', 'del'], ['+', 'ins']]);

// compare returns the lines of both texts in order, each { sign, text }: − for the first text only, + for the second.
// A comma at the end of a line makes no difference: it comes and goes with the lines below.
export function compare(before, after) {
  const old = before === '' ? [] : before.split('\n');
  const now = after === '' ? [] : after.split('\n');
  const numbers = new Map();
  const numberOf = (line) => {
    const key = bare(line);
    if (!numbers.has(key)) numbers.set(key, numbers.size);
    return numbers.get(key);
  };
  const a = old.map(numberOf);
  const b = now.map(numberOf);
  let start = 0;
  while (start < a.length && start < b.length && a[start] === b[start]) start++;
  let end = 0;
  while (end < a.length - start && end < b.length - start && a.at(-1 - end) === b.at(-1 - end)) end++;
  const lines = now.slice(0, start).map((text) => ({ sign: ' ', text }));
  let i = start;
  let j = start;
  for (const sign of script(a.slice(start, a.length - end), b.slice(start, b.length - end))) {
    lines.push({ sign, text: sign === '−' ? old[i] : now[j] });
    if (sign !== '+') i++;
    if (sign !== '−') j++;
  }
  return slide(lines.concat(now.slice(now.length - end).map((text) => ({ sign: ' ', text }))));
}

const bare = (line) => line.endsWith(',') ? line.slice(0, -1) : line;

// slide moves changes that start with the end of one object or array, and stop before the end of another, down to that
// end, so that they are whole objects.
function slide(lines) {
  for (let i = 0, end = 0; i < lines.length; i++) {
    const { sign, text } = lines[i];
    if (sign === ' ' || !/^ *[}\]]/.test(text)) continue;
    if (i > 0 && lines[i - 1].sign === sign) continue; // in the middle of a change
    for (end = Math.max(end, i); end < lines.length && lines[end].sign === sign;) end++;
    if (lines[end]?.sign !== ' ' || bare(lines[end].text) !== bare(text)) continue;
    lines[i].sign = ' ';
    lines[end].sign = sign;
  }
  return lines;
}

// script returns the signs of the shortest way from a to b (E. Myers, An O(ND) Difference Algorithm, 1986), or of the
// longest, all of a and then all of b, if it has more than mostEdits edits.
function script(a, b) {
  const most = Math.min(a.length + b.length, mostEdits);
  const reach = new Int32Array(2 * most + 3); // by diagonal, from -most - 1 on: how far into a the furthest way comes
  const at = most + 1;
  const past = []; // reach before each number of edits
  for (let edits = 0; edits <= most; edits++) {
    past.push(reach.slice(at - edits - 1, at + edits + 2));
    for (let k = -edits; k <= edits; k += 2) {
      let x = comesFromAbove(reach, at, k, edits) ? reach[at + k + 1] : reach[at + k - 1] + 1;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      reach[at + k] = x;
      if (x >= a.length && x - k >= b.length) return wayBack(past, a.length, b.length);
    }
  }
  return [...a.map(() => '−'), ...b.map(() => '+')];
}

// comesFromAbove reports whether the furthest way to diagonal k ends with an added line, not with a removed one.
function comesFromAbove(reach, at, k, edits) {
  return k === -edits || k !== edits && reach[at + k - 1] < reach[at + k + 1];
}

function wayBack(past, x, y) {
  const signs = [];
  for (let edits = past.length - 1; edits >= 0; edits--) {
    const at = edits + 1;
    const k = x - y;
    const added = comesFromAbove(past[edits], at, k, edits);
    const from = edits === 0 ? 0 : added ? past[edits][at + k + 1] : past[edits][at + k - 1] + 1;
    while (x > from) {
      signs.push(' ');
      x--;
      y--;
    }
    if (edits === 0) break;
    signs.push(added ? '+' : '−');
    if (added) y--;
    else x--;
  }
  return signs.reverse();
}

// blocksOf returns the changed lines with their context, in blocks that do not touch: { path, lines }. path has the
// names of the members that a block's first line is in.
function blocksOf(lines) {
  const blocks = [];
  const open = []; // by depth, the line that opens the object or array which line at is in
  let at = 0;
  let end = 0; // of the last block
  lines.forEach((line, i) => {
    if (line.sign === ' ') return;
    const from = Math.max(end, i - context);
    if (from > end || !blocks.length) {
      for (; at < from; at++) open[depthOf(lines[at])] = lines[at];
      blocks.push({ path: open.slice(1, depthOf(lines[from])).map(nameOf), lines: [] });
    }
    const to = Math.min(lines.length, i + 1 + context);
    blocks.at(-1).lines.push(...lines.slice(from, to));
    end = to;
  });
  return blocks;
}

const depthOf = (line) => line.text.search(/[^ ]|$/) / 2;

const nameOf = (line) => /"(.*)": .$/.exec(line.text)?.[1] ?? '[…]';
