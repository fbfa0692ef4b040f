// The view Overview: what a tenant has used, by whom, and what was refused.

import { currentTenant, path, query, request } from './api.js';
import { addressOf } from './app.js';
import { chart, seriesOf } from './chart.js';
import { button, el, number, table } from './dom.js';

const dayLength = 86_400_000; // ms
const usersOfDay = 100; // of whom the API is asked, those who were charged most
const usersShown = 10;

const periods = [[7, '7 days'], [30, '30 days'], [90, '90 days']];
const measures = [['tokensCharged', 'Tokens charged'], ['tokensGranted', 'Tokens granted'], ['requests', 'Requests'],
  ['cacheHits', 'Cache hits'], ['refused', 'Refused requests']];
const kinds = [['byModel', 'Model'], ['byEndpoint', 'Endpoint'], ['byGroup', 'Group']];
const ofKinds = ['tokensCharged', 'requests']; // the others are counted for the tenant only

const reasons = [
  ['balance', 'Balance: not enough tokens left'],
  ['rate', 'Rate: too many requests in a time or at once'],
  ['key', 'Key: unknown or disabled'],
  ['group', 'Group: removed from the config, or without the model'],
];

// What was chosen, and what was read of the tenant that was shown last, stay as long as the page.
const chosen = { days: 30, measure: 'tokensCharged', kind: 'byModel' };
let read = { tenant: '', text: '', days: [] };

// showOverview shows what is known at once, and then what has come to it. A click on a sum shows it by day.
export async function showOverview(content, { signal }) {
  const sums = new Map(measures.map(([measure]) => [measure, el('span', { class: 'figure' })]));
  const cards = measures.map(([measure, name]) =>
    [measure, [el('span', { class: 'faint' }, name), ' ', sums.get(measure)]]);
  const plot = el('div');
  const steps = el('div');
  const lists = el('div', { class: 'columns' });
  const drawDays = () => {
    parts.hidden = !ofKinds.includes(chosen.measure);
    plot.replaceChildren(plotOf(shownDays()));
  };
  const parts = choice('Parts', 'kind', kinds, drawDays);
  const byDay = el('section', { hidden: true }, el('h2', {}, 'By day'), parts, plot);
  const draw = () => {
    const days = shownDays();
    const used = days.some((day) => day.requests > 0 || day.tokensCharged > 0);
    for (const [measure, sum] of sums) sum.textContent = number(sumOf(days, (day) => valueOf(day, measure)));
    byDay.hidden = !used;
    drawDays();
    steps.replaceChildren(used ? '' : firstSteps());
    lists.replaceChildren(used ? topUsers(days) : '', refused(days));
  };
  const load = async () => {
    if (await readDays(Math.max(chosen.days, read.days.length), signal)) draw();
  };
  content.append(choice('Period', 'days', periods, () => read.days.length < chosen.days ? load() : draw()),
    choice('By day', 'measure', cards, drawDays, 'cards'), steps, byDay, lists);
  if (read.tenant !== currentTenant()) read = { tenant: currentTenant(), text: '', days: [] };
  if (read.days.length > 0) draw();
  await load();
}

const shownDays = () => read.days.slice(-chosen.days);

// readDays reads the last n days in UTC, and returns whether that has brought something new.
async function readDays(n, signal) {
  const dayOf = (time) => new Date(time).toISOString().slice(0, 10);
  const now = Date.now(), into = read;
  const url = path`/admin/usage` + query({ from: dayOf(now - (n - 1) * dayLength), to: dayOf(now), by: 'model',
    limit: usersOfDay }) + '&by=user';
  const { text, body } = await request('GET', url, { signal });
  if (text === into.text) return false;
  Object.assign(into, { text, days: body.days });
  return true;
}

// choice returns buttons, of which the one for chosen[name] is pressed.
function choice(label, name, options, show, style = 'choice') {
  const buttons = options.map(([value, text]) => button(text, () => {
    chosen[name] = value;
    press();
    return show();
  }));
  const press = () => buttons.forEach((node, i) => node.setAttribute('aria-pressed', options[i][0] === chosen[name]));
  press();
  return el('div', { class: style, role: 'group', 'aria-label': label }, buttons);
}

const sumOf = (all, of) => all.reduce((sum, one) => sum + of(one), 0);
const valueOf = (day, measure) =>
  measure === 'refused' ? sumOf(Object.values(day.refused), (n) => n) : day[measure];

// firstSteps returns what a tenant without usage sees instead of a chart.
function firstSteps() {
  const step = (text, view, more) => el('li', {}, text, el('a', { href: addressOf(view) }, view), more);
  return el('section', {}, el('h2', {}, `Nothing was used in the last ${chosen.days} days`), el('ol', {},
    step('Add an endpoint with its models in ', 'Config', '.'),
    step('Create a key for a user in ', 'Users', '.'),
    step('Send a message in ', 'Try it', '. It is counted here.')));
}

function plotOf(days) {
  const { measure, kind } = chosen;
  const what = new Map(measures).get(measure);
  const by = ofKinds.includes(measure) ? new Map(kinds).get(kind).toLowerCase() : measure === 'refused' && 'reason';
  return chart({
    title: by ? `${what} by ${by}` : what,
    what,
    days: days.map((day) => day.day),
    series: seriesOf(days, (day) => partsOf(day, kind, measure)),
    columns: measures.filter(([one]) => one !== measure)
      .map(([one, name]) => ({ name, values: days.map((day) => valueOf(day, one)) })),
  });
}

// partsOf returns the names of a day with their part of a measure. What was charged without the gateway has no endpoint
// and no model.
function partsOf(day, kind, measure) {
  if (measure === 'refused') return reasons.map(([reason, words]) => [words, day.refused[reason]]);
  if (!ofKinds.includes(measure)) return [[new Map(measures).get(measure), day[measure]]];
  const parts = Object.entries(day[kind]).map(([name, sums]) => [name || 'No model', sums[measure]]);
  const direct = day[measure] - sumOf(parts, ([, n]) => n);
  return direct > 0 ? [...parts, ['Direct charges', direct]] : parts;
}

function topUsers(days) {
  const sums = new Map();
  for (const { userId, requests, tokensCharged } of days.flatMap((day) => day.byUser)) {
    const [before, charged] = sums.get(userId) ?? [0, 0];
    sums.set(userId, [before + requests, charged + tokensCharged]);
  }
  const all = sumOf(days, (day) => day.tokensCharged);
  const top = [...sums].sort(([, a], [, b]) => b[1] - a[1]).slice(0, usersShown);
  const rows = top.map(([id, [requests, charged]]) => [nameOf(id), number(requests), number(charged),
    `${number(all > 0 ? 100 * charged / all : 0)} %`]);
  return el('section', {}, el('h2', {}, 'Top users'),
    table('Users who were charged most', ['User', 'Requests', 'Tokens charged', 'Share'], rows,
      { numeric: [1, 2, 3], hideCaption: true }),
    days.some((day) => day.byUser.length >= usersOfDay) &&
      el('p', { class: 'hint' }, `Of each day, the ${usersOfDay} users who were charged most are counted here.`));
}

// nameOf returns a user ID as a link to its keys. In the API, null is all who are anonymous, and other is the rest.
function nameOf(userId) {
  if (userId === null) return 'Anonymous visitors';
  if (userId === 'other') return 'Other users';
  return el('a', { href: addressOf('Users', userId) }, userId);
}

function refused(days) {
  const rows = reasons.map(([reason, words]) => [words, number(sumOf(days, (day) => day.refused[reason]))]);
  return el('section', {}, el('h2', {}, 'Refused requests'),
    days.some((day) => valueOf(day, 'refused') > 0) ? table('Refused requests by reason', ['Reason', 'Requests'], rows,
      { numeric: [1], hideCaption: true }) : el('p', { class: 'faint' }, 'Nothing was refused.'));
}
