// Draws what was counted by day: stacked bars, a legend with the values of a day, and a table of all of them.

import { el, number, svg, table } from './dom.js';

const height = 100; // of the drawing, which is stretched to its place

const dates = new Intl.DateTimeFormat('en', { dateStyle: 'medium', timeZone: 'UTC' });
const dateOf = (day) => dates.format(new Date(day));

// dayOf returns the day in UTC that was ago days before today.
export const dayOf = (ago) => new Date(Date.now() - ago * 86_400_000).toISOString().slice(0, 10);

// sumOf returns the sum of what of returns for each.
export const sumOf = (all, of = (n) => n) => all.reduce((sum, one) => sum + of(one), 0);

// seriesOf returns a measure of days of usage in parts of a kind (such as byModel). Direct charges belong to no part.
export function seriesOf(days, kind, measure) {
  const series = new Map();
  days.forEach((day, i) => {
    const parts = Object.entries(day[kind]).map(([name, sums]) => [name || 'No model', sums[measure]]);
    const direct = day[measure] - sumOf(parts, ([, n]) => n);
    for (const [name, n] of direct > 0 ? [...parts, ['Direct charges', direct]] : parts) {
      if (!series.has(name)) series.set(name, { name, values: days.map(() => 0) });
      series.get(name).values[i] += n;
    }
  });
  return [...series.values()];
}

// chart returns an element that shows what is counted on days ('2026-11-25'), in series of { name, values }. The arrow
// keys, a pointer or a tap choose the day that the legend shows; without one it shows the sums.
export function chart({ title, what, days, series }) {
  const parts = collect(series, days);
  const totals = sumsByDay(parts, days);
  const ticks = ticksTo(Math.max(...totals));
  const y = (value) => height * (1 - value / ticks[0]);
  const groups = days.map((_, i) => bar(parts, i, ticks[0]));
  const when = el('span', { class: 'faint' });
  const total = el('strong');
  const shown = parts.map(() => el('span', { class: 'number' }));
  const plot = el('div', { class: 'plot', role: 'slider', tabindex: '0', 'aria-label': `${title}: day`,
    'aria-valuemin': 1, 'aria-valuemax': days.length },
  svg('svg', { viewBox: `0 0 ${days.length} ${height}`, preserveAspectRatio: 'none', 'aria-hidden': 'true' },
    ticks.map((tick) => svg('line', { x2: days.length, y1: y(tick), y2: y(tick) })), groups));

  // choose shows the values of a day, or the sums if i is undefined.
  function choose(i) {
    const of = (values) => number(i === undefined ? sumOf(values) : values[i]);
    groups.forEach((group, at) => group.classList.toggle('chosen', at === i));
    when.textContent = `${i === undefined ? `${dateOf(days[0])} – ${dateOf(days.at(-1))}` : dateOf(days[i])} (UTC)`;
    total.textContent = `${what}: ${of(totals)}`;
    parts.forEach(({ values }, at) => { shown[at].textContent = of(values); });
    plot.setAttribute('aria-valuenow', (i ?? days.length - 1) + 1);
    plot.setAttribute('aria-valuetext', [when.textContent, total.textContent,
      ...parts.map(({ name, values }) => `${name}: ${of(values)}`)].join('. '));
  }

  choose();
  listen(plot, days.length, choose);
  return el('figure', { class: 'chart', 'aria-label': title }, el('div', { class: 'row' }, total, when),
    el('div', { class: 'axes' },
      el('div', { class: 'values', 'aria-hidden': 'true' }, ticks.map((tick) => el('span', {}, number(tick)))),
      plot, drawDays(days)),
    el('ul', { class: 'legend' }, parts.map(({ name, shade }, at) =>
      el('li', {}, el('span', { class: `swatch ${shade}` }), el('span', {}, name), shown[at]))),
    tableOf(title, days, [{ name: what, values: totals }, ...parts]));
}

const sumsByDay = (series, days) => days.map((_, i) => sumOf(series, ({ values }) => values[i]));

// collect returns the series with their colours, the largest first. The rest, with what the API calls other, is one.
function collect(series, days) {
  const largest = series.filter(({ name }) => name !== 'other')
    .sort((a, b) => sumOf(b.values) - sumOf(a.values)).slice(0, 7);
  const others = series.filter((one) => !largest.includes(one));
  const parts = largest.map((one, i) => ({ ...one, shade: `c${i}` }));
  if (others.length > 0) parts.push({ name: 'Other', shade: 'rest', values: sumsByDay(others, days) });
  return parts;
}

function bar(parts, i, most) {
  let y = height;
  return svg('g', {}, svg('rect', { class: 'back', x: i, width: 1, height }),
    parts.filter(({ values }) => values[i] > 0).map(({ values, shade }) => {
      const tall = Math.max(height * values[i] / most, .7); // else little would look like nothing
      y -= tall;
      return svg('rect', { class: shade, x: i + .1, width: .8, y, height: tall });
    }));
}

// ticksTo returns about five round whole numbers from one that is not below most down to 0.
function ticksTo(most) {
  const power = 10 ** Math.floor(Math.log10(Math.max(most / 4, 1)));
  const step = [1, 2, 5, 10].find((factor) => factor * power * 4 >= most) * power;
  const n = Math.max(Math.ceil(most / step), 1);
  return Array.from({ length: n + 1 }, (_, i) => (n - i) * step);
}

function drawDays(days) {
  const step = Math.ceil(days.length / 7);
  const offset = Math.floor(step / 2); // no name is at an end, where half of it would be outside
  return svg('svg', { class: 'days', 'aria-hidden': 'true' }, days.map((day, i) =>
    (days.length - 1 - i) % step === offset &&
      svg('text', { x: `${100 * (i + .5) / days.length}%`, y: 13 }, dateOf(day).split(',')[0])));
}

// listen lets a pointer, a tap and the keys of a slider choose one of n days.
function listen(plot, n, choose) {
  let at = n - 1;
  const go = (i) => choose(at = Math.min(Math.max(i, 0), n - 1));
  const moves = { ArrowRight: 1, ArrowUp: 1, ArrowLeft: -1, ArrowDown: -1, Home: -n, End: n };
  plot.onpointermove = plot.onpointerdown = ({ clientX }) => {
    const { left, width } = plot.getBoundingClientRect();
    go(Math.floor((clientX - left) / width * n));
  };
  plot.onpointerleave = plot.onblur = () => {
    if (document.activeElement !== plot) choose();
  };
  plot.onfocus = () => go(at);
  plot.onkeydown = (event) => {
    if (!moves[event.key] || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    go(at + moves[event.key]);
  };
}

function tableOf(title, days, columns) {
  const row = (head, of) => [head, ...columns.map(({ values }) => number(of(values)))];
  return table(`${title}, by day`, ['Day (UTC)', ...columns.map(({ name }) => name)],
    [row('Sum', sumOf), ...days.map((day, i) => row(dateOf(day), (values) => values[i])).reverse()],
    { numeric: columns.map((_, i) => i + 1) });
}
