// Draws what was counted by day: stacked bars, a legend that says the values of a day, and a table of all of them.

import { el, number, svg, table } from './dom.js';

// What the API calls the rest of the names, and what the chart calls that and the series that it has no colour for.
const rest = 'other';

// Classes of the style sheet, for the series with the largest sums. The rest is grey.
const shades = ['c0', 'c1', 'c2', 'c3', 'c4', 'c5', 'c7'];
const restShade = 'c6';

const height = 100; // of the drawing, whatever it measures on the screen

const dates = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeZone: 'UTC' });

const dateOf = (day) => new Date(day + 'T00:00:00Z');
const sum = (values) => values.reduce((a, b) => a + b, 0);

// seriesOf returns the series for chart. entriesOf returns the names of a day with their numbers, as Object.entries
// does.
export function seriesOf(days, entriesOf) {
  const all = new Map();
  days.forEach((day, i) => {
    for (const [name, n] of entriesOf(day)) {
      if (!all.has(name)) all.set(name, days.map(() => 0));
      all.get(name)[i] += n;
    }
  });
  return [...all].map(([name, values]) => ({ name, values }));
}

// chart returns an element that shows counts by day.
//   title     what the chart and its table are called: 'Tokens charged by model'
//   what      is counted, as the head of the sums: 'Tokens charged'
//   days      are all days in order, in UTC: '2026-11-25'
//   series    [{ name, values }]: the parts of each sum, with a value for each day. The largest get a colour each; the
//             others, and the one that the API calls other, are one
//   columns   [{ name, values }]: further columns of the table
// The arrow keys, a pointer or a tap choose the day whose values the legend shows; without one it shows the sums.
export function chart({ title, what, days, series, columns = [] }) {
  const parts = collect(series, days);
  const totals = days.map((_, i) => sum(parts.map((part) => part.values[i])));
  const range = `${dates.formatRange(dateOf(days[0]), dateOf(days.at(-1)))} (UTC)`;
  const when = el('span', { class: 'faint' });
  const total = el('strong', {});
  for (const part of parts) part.shown = el('span', { class: 'number' });
  const bars = draw(parts, totals, days, (i) => describe(i).join('\n'));
  const plot = el('div', { class: 'plot', role: 'slider', tabindex: '0', 'aria-label': `${title}: day`,
    'aria-valuemin': 1, 'aria-valuemax': days.length }, bars.drawing);

  function describe(i) {
    return [`${dates.format(dateOf(days[i]))} (UTC)`, `${what}: ${number(totals[i])}`,
      ...parts.filter((part) => part.values[i]).map((part) => `${part.name}: ${number(part.values[i])}`)];
  }

  // choose shows the values of a day, or the sums if i is undefined.
  function choose(i) {
    const of = (values) => number(i === undefined ? sum(values) : values[i]);
    bars.groups.forEach((group, at) => group.classList.toggle('chosen', at === i));
    when.textContent = i === undefined ? range : describe(i)[0];
    total.textContent = `${what}: ${of(totals)}`;
    for (const part of parts) part.shown.textContent = of(part.values);
    if (i === undefined) return;
    plot.setAttribute('aria-valuenow', i + 1);
    plot.setAttribute('aria-valuetext', describe(i).join('. '));
  }

  choose(days.length - 1); // a slider has a value
  choose();
  listen(plot, days.length, choose);
  return el('figure', { class: 'chart', 'aria-label': title },
    el('div', { class: 'row' }, total, when),
    el('div', { class: 'axes' },
      el('div', { class: 'values', 'aria-hidden': 'true' }, bars.ticks.map((tick) => el('span', {}, number(tick)))),
      plot, drawDays(days)),
    el('ul', { class: 'legend' }, parts.map((part) => el('li', {},
      svg('svg', { class: 'swatch', 'aria-hidden': 'true' },
        svg('rect', { class: part.shade, width: 12, height: 12, rx: 3 })),
      el('span', {}, part.name), part.shown))),
    tableOf({ title, what, days, totals, parts, columns }));
}

// collect returns the series with their colours, the largest first and the rest last.
function collect(series, days) {
  const named = series.filter((one) => one.name !== rest).sort((a, b) => sum(b.values) - sum(a.values));
  const others = [...series.filter((one) => one.name === rest), ...named.splice(shades.length)];
  const parts = named.map((one, i) => ({ ...one, shade: shades[i] }));
  if (others.length === 0) return parts;
  const values = days.map((_, i) => sum(others.map((one) => one.values[i])));
  return [...parts, { name: 'Other', values, shade: restShade }];
}

// draw returns the drawing of the bars, its group of each day, and the values at its lines, from the top down. The
// drawing is stretched to the place that it has.
function draw(parts, totals, days, titleOf) {
  const ticks = ticksTo(Math.max(...totals));
  const y = (value) => +(height * (1 - value / ticks[0])).toFixed(3);
  const lines = ticks.map((tick) => svg('line', { x1: 0, x2: days.length, y1: y(tick), y2: y(tick) }));
  const groups = days.map((_, i) => {
    let below = 0;
    const bars = parts.filter((part) => part.values[i] > 0).map((part) => {
      const bottom = y(below);
      below += part.values[i];
      const top = Math.min(y(below), bottom - .7); // else little would look like nothing
      return svg('rect', { class: part.shade, x: i + .1, width: .8, y: top, height: bottom - top });
    });
    const back = svg('rect', { class: 'back', x: i, y: 0, width: 1, height });
    return svg('g', {}, svg('title', {}, titleOf(i)), back, bars);
  });
  const drawing = svg('svg', { viewBox: `0 0 ${days.length} ${height}`, preserveAspectRatio: 'none',
    'aria-hidden': 'true' }, svg('g', { class: 'lines' }, lines), groups);
  return { drawing, groups, ticks };
}

// ticksTo returns about five round whole numbers from one that is not below most down to 0.
function ticksTo(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(most / 4, 1)));
  const step = [1, 2, 5, 10].find((factor) => factor * power * 4 >= most) * power;
  const n = Math.max(Math.ceil(most / step), 1);
  return Array.from({ length: n + 1 }, (_, i) => (n - i) * step);
}

// drawDays returns the names of some days, without the year, each below its bar.
function drawDays(days) {
  const step = Math.ceil(days.length / 7);
  const offset = Math.floor(step / 2); // no name is at an end, where half of it would be outside
  const texts = days.flatMap((day, i) => (days.length - 1 - i) % step === offset
    ? [svg('text', { x: `${100 * (i + .5) / days.length}%`, y: 13 }, dates.format(dateOf(day)).split(',')[0])] : []);
  return svg('svg', { class: 'days', 'aria-hidden': 'true' }, texts);
}

// listen lets a pointer, a tap and the keys of a slider choose one of n days.
function listen(plot, n, choose) {
  let at = n - 1;
  const go = (i) => choose(at = Math.min(Math.max(i, 0), n - 1));
  const point = (event) => {
    const { left, width } = plot.getBoundingClientRect();
    go(Math.floor((event.clientX - left) / width * n));
  };
  const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -n, End: n };
  const listeners = {
    pointermove: point,
    pointerdown: point,
    pointerleave: (event) => {
      if (event.pointerType === 'mouse' && document.activeElement !== plot) choose();
    },
    focus: () => choose(at),
    blur: () => choose(),
    keydown: (event) => {
      if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
      event.preventDefault();
      go(at + moves[event.key]);
    },
  };
  for (const [event, listener] of Object.entries(listeners)) plot.addEventListener(event, listener);
}

// tableOf returns the values as a table, the newest day first.
function tableOf({ title, what, days, totals, parts, columns }) {
  const all = [{ name: what, values: totals }, ...parts, ...columns];
  const rows = days.map((day, i) => [dates.format(dateOf(day)), ...all.map((one) => number(one.values[i]))]);
  const node = table(`${title}, by day`, ['Day (UTC)', ...all.map((one) => one.name)],
    [['Sum', ...all.map((one) => number(sum(one.values)))], ...rows.reverse()], { numeric: all.map((_, i) => i + 1) });
  node.classList.add('bounded');
  return node;
}
