// The view Overview: what a tenant has used, by whom, and what was refused.

import { currentTenant, path, request } from './api.js';
import { addressOf } from './app.js';
import { chart, dayOf, seriesOf, sumOf } from './chart.js';
import { button, el, number, table } from './dom.js';

const periods = [7, 30, 90].map((n) => [n, `${n} days`]);
const measures = [['tokensCharged', 'Tokens charged'], ['tokensGranted', 'Tokens granted'], ['requests', 'Requests'],
  ['cacheHits', 'Cache hits'], ['refused', 'Refused requests']];
const kinds = ['Model', 'Endpoint', 'Group'].map((name) => [name, name]);
const ofKinds = ['tokensCharged', 'requests']; // what is counted by kind

const reasons = [['balance', 'Balance: too few tokens left'], ['rate', 'Rate: too many in a window or at once'],
  ['key', 'Key: unknown or disabled'], ['group', 'Group: removed from the config, or without the model']];

// These stay when another view is shown.
const chosen = { days: 30, measure: 'tokensCharged', kind: 'Model' };
let read = { tenant: '', days: [] };

// showOverview shows what is known at once, and then what has come to it.
export async function showOverview(content, { signal }) {
  const sums = measures.map(() => el('span', { class: 'figure' }));
  const cards = measures.map(([measure, name], i) => [measure, [el('span', { class: 'faint' }, name), ' ', sums[i]]]);
  const [plot, steps, lists] = [el('div'), el('div'), el('div', { class: 'columns' })];
  const drawDays = () => {
    if (byDay.hidden) return;
    parts.hidden = !ofKinds.includes(chosen.measure);
    plot.replaceChildren(plotOf(shownDays()));
  };
  const parts = choice('Parts', 'kind', kinds, drawDays);
  const byDay = el('section', { hidden: true }, el('h2', {}, 'By day'), parts, plot);
  const draw = () => {
    const days = shownDays();
    const used = sumOf(days, (day) => day.requests + day.tokensCharged) > 0;
    sums.forEach((sum, i) => { sum.textContent = number(sumOf(days, (day) => valueOf(day, measures[i][0]))); });
    byDay.hidden = !used;
    drawDays();
    steps.replaceChildren(used ? '' : firstSteps());
    lists.replaceChildren(used ? topUsers(days) : '', refused(days));
  };
  const load = async () => {
    const from = dayOf(Math.max(chosen.days, read.days.length) - 1);
    const url = path`/admin/usage?from=${from}&to=${dayOf(0)}&by=model&by=user&limit=100`;
    read.days = (await request('GET', url, { signal })).body.days;
    draw();
  };
  content.append(choice('Period', 'days', periods, () => read.days.length < chosen.days ? load() : draw()),
    choice('By day', 'measure', cards, drawDays, 'cards'), steps, byDay, lists);
  if (read.tenant !== currentTenant()) read = { tenant: currentTenant(), days: [] };
  if (read.days.length > 0) draw();
  await load();
}

const shownDays = () => read.days.slice(-chosen.days);

// choice returns buttons, with the one for chosen[name] pressed.
function choice(label, name, options, show, style = 'row') {
  const buttons = options.map(([value, text]) => button(text, () => {
    chosen[name] = value;
    press();
    return show();
  }));
  const press = () => buttons.forEach((node, i) => node.setAttribute('aria-pressed', options[i][0] === chosen[name]));
  press();
  return el('div', { class: style, role: 'group', 'aria-label': label }, buttons);
}

const valueOf = (day, measure) => measure === 'refused' ? sumOf(Object.values(day.refused)) : day[measure];

function firstSteps() {
  return el('section', {}, el('h2', {}, `Nothing was used in the last ${chosen.days} days`),
    'To begin, add an endpoint in Config, create a key in Users, or send a message in Try it.');
}

function plotOf(days) {
  const { measure, kind } = chosen;
  const what = new Map(measures).get(measure);
  let by = '';
  let series = [{ name: what, values: days.map((day) => day[measure]) }];
  if (ofKinds.includes(measure)) {
    by = ` by ${kind.toLowerCase()}`;
    series = seriesOf(days, `by${kind}`, measure);
  } else if (measure === 'refused') {
    by = ' by reason';
    series = reasons.map(([reason, name]) => ({ name, values: days.map((day) => day.refused[reason]) }));
  }
  return chart({ title: what + by, what, days: days.map(({ day }) => day), series });
}

function topUsers(days) {
  const sums = new Map();
  for (const { userId, requests, tokensCharged } of days.flatMap((day) => day.byUser)) {
    const [before, charged] = sums.get(userId) ?? [0, 0];
    sums.set(userId, [before + requests, charged + tokensCharged]);
  }
  const top = [...sums].sort(([, a], [, b]) => b[1] - a[1]).slice(0, 10);
  return section('Top users', 'Users who were charged most', ['User', 'Requests', 'Tokens charged'],
    top.map(([id, numbers]) => [nameOf(id), ...numbers.map(number)]));
}

function nameOf(userId) {
  if (userId === null) return 'Anonymous visitors';
  if (userId === 'other') return 'Other users';
  return el('a', { href: addressOf('Users', userId) }, userId);
}

function refused(days) {
  return section('Refused requests', 'Refused requests by reason', ['Reason', 'Requests'],
    reasons.map(([reason, words]) => [words, number(sumOf(days, (day) => day.refused[reason]))]));
}

const section = (title, caption, heads, rows) => el('section', {}, el('h2', {}, title),
  table(caption, heads, rows, { numeric: [1, 2], hideCaption: true }));
