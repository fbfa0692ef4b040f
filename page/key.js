// Shows an API key: masked, with what binds it, what it has used and what can be done with it.

import { path, request } from './api.js';
import { chart, dayOf, seriesOf } from './chart.js';
import { button, copyButton, el, mask, messages, number, time } from './dom.js';
import { Actions } from './keyactions.js';
import { limitsOf } from './keytext.js';

const columns = [['requests', 'Requests'], ['inputTokens', 'Input tokens'], ['outputTokens', 'Output tokens'],
  ['tokensGranted', 'Tokens granted']];

// A KeyCard shows a key, as entry has it from the list. view is what the cards on display share:
//   groups, readGroups()            of the present config, a Map; null if that is broken
//   signal, cards                   which ends with them; all of them
//   rotated(entry, key, sentence)   shows the new key
//   revoked(entry, sentence)        shows what is left
export class KeyCard {
  #shown = false;
  #usage = new AbortController();

  constructor(entry, view) {
    Object.assign(this, { view, key: entry.apiKey });
    [this.code, this.tags, this.facts, this.plot] = [el('code'), el('span'), el('div'), el('div')];
    this.copy = copyButton(() => this.key);
    this.reveal = this.button('Show', () => {
      this.#shown = !this.#shown;
      this.update(this.entry);
    });
    this.actions = new Actions(this);
    this.periods = [7, 30, 90].map((n) =>
      this.button(`${n} days`, () => this.showUsage(n), { 'aria-pressed': 'false' }));
    this.node = el('section', { class: 'key', 'aria-label': mask(this.key) }, el('h3', {}, this.code, this.tags),
      el('div', { class: 'actions' }, this.reveal, this.copy, this.actions.buttons), messages(), this.facts,
      el('h4', {}, 'Usage'), el('div', { class: 'actions' }, this.periods), this.plot);
    this.update(entry);
  }

  // button returns a button whose name ends in hidden words that say which key it is for.
  button(name, action, props) {
    return button([name, el('span', { class: 'visually-hidden' }, ' ' + mask(this.key))], action, props);
  }

  get url() { return path`/admin/keys/${this.key}`; }

  // update shows the key as the server says it is now.
  update(entry) {
    this.entry = entry;
    this.code.textContent = this.#shown ? this.key : mask(this.key);
    this.copy.hidden = !this.#shown;
    this.reveal.firstChild.data = this.#shown ? 'Hide' : 'Show';
    this.actions.update();
    this.tags.replaceChildren(...tagsOf(entry).map(([text, kind]) => el('span', { class: `tag ${kind}` }, text)));
    if (entry.error) {
      this.facts.replaceChildren(el('p', {}, 'What Redis has for this key is malformed, so it is refused. Revoke it.'));
      return;
    }
    const held = entry.tokensHeld ? `, ${number(entry.tokensHeld)} more are held` : '';
    this.facts.replaceChildren(
      el('p', {}, el('span', { class: 'figure' }, number(entry.tokensLeft)), ' tokens left', held),
      el('div', { class: 'grid' }, [factsOf(entry), boundsOf(entry, this.view.groups)].map((rows) =>
        el('dl', {}, rows.flatMap(([term, ...value]) => [el('dt', {}, term), el('dd', {}, value)])))));
  }

  // showUsage shows what the key has used in the last n days.
  async showUsage(n = 30) {
    this.#usage.abort();
    this.#usage = new AbortController();
    for (const period of this.periods) period.setAttribute('aria-pressed', period.firstChild.data === `${n} days`);
    const { body: { days } } = await request('GET', this.url + `/usage?from=${dayOf(n - 1)}&to=${dayOf(0)}`,
      { signal: AbortSignal.any([this.view.signal, this.#usage.signal]) });
    this.plot.replaceChildren(days.some((day) => day.requests || day.tokensCharged || day.tokensGranted)
      ? chart({ title: 'Tokens charged by model', what: 'Tokens charged', days: days.map(({ day }) => day),
        series: seriesOf(days, 'byModel', 'tokensCharged'),
        columns: columns.map(([member, name]) => ({ name, values: days.map((day) => day[member]) })) })
      : el('p', { class: 'faint' }, `Nothing in the last ${n} days.`));
  }
}

function tagsOf({ error, label, enabled, expiresAt, sharesWith }) {
  return [[label, ''], [error && 'Malformed', 'bad'], [enabled === false && 'Disabled', 'bad'],
    [expiresAt && new Date(expiresAt) <= Date.now() && 'Expired', 'bad'], [sharesWith && 'Shares a balance', '']]
    .filter(([text]) => text);
}

function factsOf({ userId, createdAt, expiresAt, sharesWith }) {
  const facts = [['User', userId ?? 'A visitor'], ['Created', time(createdAt)],
    ['Expires', expiresAt ? time(expiresAt) : 'Never']];
  if (sharesWith) facts.push(['Shares with', el('code', {}, mask(sharesWith)), ': balance, group, limits and usage']);
  return facts;
}

// boundsOf returns what binds the key by the present config.
function boundsOf({ group, refillsAt }, groups) {
  if (!groups) return [['Group', group], ['Limits', 'Unknown, since the config is broken']];
  if (!groups.has(group)) {
    return [['Group', group, el('span', { class: 'bad' }, ' is not in the config any more. The key is refused until ' +
      'the group is back or you move the key.')]];
  }
  return [['Group', group], ...limitsOf(groups.get(group)), ...refillsAt ? [['Next refill', time(refillsAt)]] : []];
}
