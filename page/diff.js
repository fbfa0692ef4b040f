// Compares JSON texts, as json.js lays them out, line by line.

import { el } from './dom.js';

const mostEdits = 700; // that are looked for: they cost their square in time and memory
const mostLines = 2000; // that are shown
const context = 3; // lines that are shown before and after a change

// difference returns an element that shows what turns one text into another: the changed lines in blocks, each with the
// path that its first line is in. legend says what the two texts are.
export function difference(before, after, legend) {
  const lines = compare(before, after);
  const depthOf = (at) => lines[at].text.search(/[^ ]|$/) / 2;
  const nodes = [];
  const open = []; // by depth, the name of the member that line at is in
  let at = 0;
  let end = 0; // of the last block
  lines.forEach(({ sign }, i) => {
    if (sign === ' ') return;
    const from = Math.max(end, i - context);
    for (; at < from; at++) open[depthOf(at)] = /"(.*)": .$/.exec(lines[at].text)?.[1] ?? '[…]';
    if (from > end) nodes.push(el('span', { class: 'faint' }, open.slice(1, depthOf(from)).join(' › ') || '…'));
    for (end = from; end <= i + context && end < lines.length; end++) {
      nodes.push(el(tags[lines[end].sign], {}, `${lines[end].sign} ${lines[end].text}`));
    }
  });
  if (!nodes.length) return el('p', { class: 'faint' }, 'No difference but in white space.');
  const rest = nodes.splice(mostLines).length;
  return el('div', {}, el('p', { class: 'hint' }, legend), el('pre', { class: 'diff' }, nodes),
    rest > 0 && el('p', { class: 'hint' }, `${rest} more lines are not shown.`));
}

const tags = { ' ': 'span', '−': 'del', '+': 'ins' };

// bare returns a line without the comma at its end, which comes and goes with the lines below.
const bare = (line) => line.endsWith(',') ? line.slice(0, -1) : line;

// compare returns the lines of both texts in order, each { sign, text }: − for the first text only, + for the second.
function compare(before, after) {
  const [old, now] = [before, after].map((text) => text === '' ? [] : text.split('\n'));
  let i = 0;
  let j = 0;
  return script(old.map(bare), now.map(bare)).map((sign) => {
    const text = sign === '−' ? old[i] : now[j];
    if (sign !== '+') i++;
    if (sign !== '−') j++;
    return { sign, text };
  });
}

// script returns the signs of the lines on the shortest way from a to b (E. Myers: An O(ND) Difference Algorithm). What
// is left after mostEdits edits, it takes away from a and adds from b.
function script(a, b) {
  const ways = []; // by diagonal, the one that comes furthest: { x, y: its end in a and b, same lines, sign, from }
  const wayOn = (k) => ways[k + mostEdits + 1];
  const reach = (k) => wayOn(k)?.x ?? -1;
  ways[mostEdits + 2] = { x: 0 };
  let best;
  for (let edits = 0; edits <= mostEdits; edits++) {
    for (let k = -edits; k <= edits; k += 2) {
      const adds = reach(k - 1) < reach(k + 1);
      const first = adds ? reach(k + 1) : reach(k - 1) + 1;
      let x = first;
      while (x < a.length && x - k < b.length && a[x] === b[x - k]) x++;
      const way = { x, y: x - k, same: x - first, sign: adds ? '+' : '−', from: wayOn(adds ? k + 1 : k - 1) };
      ways[k + mostEdits + 1] = way;
      if (x > a.length || way.y > b.length) continue;
      if (!best || x + way.y > best.x + best.y) best = way;
      if (x + way.y === a.length + b.length) return signsOf(way);
    }
  }
  return [...signsOf(best), ...a.slice(best.x).fill('−'), ...b.slice(best.y).fill('+')];
}

function signsOf(way) {
  const signs = [];
  for (; way.from; way = way.from) {
    for (let n = 0; n < way.same; n++) signs.push(' ');
    signs.push(way.sign);
  }
  return signs.reverse().slice(1); // the first way starts above the first line
}
