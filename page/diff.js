// Compares JSON texts, as json.js lays them out, line by line.

import { el } from './dom.js';

const mostPairs = 4e6; // of lines that are compared
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

// compare returns the lines of both texts in order, each { sign, text }: − for the first text only, + for the second.
function compare(before, after) {
  const [a, b] = [before, after].map((text) => text === '' ? [] : text.split('\n'));
  if (a.length * b.length <= mostPairs) return merge(a, b);
  const least = Math.min(a.length, b.length);
  let start = 0;
  while (start < least && bare(a[start]) === bare(b[start])) start++;
  let end = 0;
  while (end < least - start && bare(a.at(-1 - end)) === bare(b.at(-1 - end))) end++;
  return [...mark(' ', b.slice(0, start)), ...merge(a.slice(start, a.length - end), b.slice(start, b.length - end)),
    ...mark(' ', b.slice(b.length - end))];
}

const mark = (sign, lines) => lines.map((text) => ({ sign, text }));

// bare returns a line without the comma at its end, which comes and goes with the lines below.
const bare = (line) => line.replace(/,$/, '');

// merge does what compare does, by the longest common subsequence, if that does not take too long.
function merge(a, b) {
  if (a.length * b.length > mostPairs) return [...mark('−', a), ...mark('+', b)];
  const [old, now] = [a.map(bare), b.map(bare)];
  const lengths = Array.from({ length: a.length + 1 }, () => new Uint16Array(b.length + 1)); // from lines i and j on
  for (let i = a.length - 1; i >= 0; i--) {
    for (let j = b.length - 1; j >= 0; j--) {
      lengths[i][j] = old[i] === now[j] ? lengths[i + 1][j + 1] + 1 : Math.max(lengths[i + 1][j], lengths[i][j + 1]);
    }
  }
  const lines = [];
  for (let i = 0, j = 0; i < a.length || j < b.length;) {
    const stays = i < a.length && j < b.length && old[i] === now[j];
    const goes = !stays && i < a.length && (j === b.length || lengths[i + 1][j] >= lengths[i][j + 1]);
    lines.push(stays ? { sign: ' ', text: b[j] } : goes ? { sign: '−', text: a[i] } : { sign: '+', text: b[j] });
    if (stays || goes) i++;
    if (!goes) j++;
  }
  return lines;
}
