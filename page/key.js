// Makes an API key, and shows one: masked, with what binds it, what it has used and what can be done with it.

import { Attempt, path, query, request } from './api.js';
import { chart, dayOf, seriesOf } from './chart.js';
import { copyButton, dialog, el, field, mask, messages, newID, number, rowButton, showStatus } from './dom.js';
import { boundsOf, count, factsOf, given, wholeNumber } from './keytext.js';

const lifetimes = [['', 'Never'], ...[1, 7, 30, 90, 365].map((days) => [days * 86400, `In ${count(days, 'day')}`])];

// newKey makes a key as it is asked for, and shows it in the view.
export async function newKey(view) {
  const names = namesOf(await view.readGroups());
  const value = names.find((name) => name !== 'anonymous');
  const fields = el('div', { class: 'grid' },
    field('User ID', { name: 'userId', required: true, autocapitalize: 'none', spellcheck: 'false' }),
    field('Group', { tag: 'select', name: 'group', required: true, options: names, value }),
    field('Label', { name: 'label', hint: 'Optional. The holder sees it, too.' }),
    field('Tokens', { name: 'tokens', hint: 'Optional. By default as many as the group says.' }),
    field('Expires', { tag: 'select', name: 'expiresIn', options: lifetimes }));
  const attempt = new Attempt();
  let made;
  await dialog({ title: 'New key', verb: 'Create key', fields: [fields], action: async (values) => {
    const { userId, group, label, tokens, expiresIn } = given(values);
    const { body } = await attempt.send('POST', path`/admin/keys`, { userId, group, label,
      tokens: tokens && wholeNumber(tokens, 'Tokens'), expiresIn: expiresIn && Number(expiresIn) });
    made = [`New key of ${userId}`, body.apiKey,
      `Created with ${count(body.tokensLeft, 'token')} in the group ${group}.`, userId];
  } });
  if (made) view.made(...made);
}

const namesOf = (groups) => [...groups?.keys() ?? []];

const reason = () => field('Reason', { name: 'reason', hint: 'Optional, for the log.' });

function checkbox(label, name) {
  const id = newID();
  return el('div', { class: 'check' }, el('input', { id, type: 'checkbox', name }), el('label', { for: id }, label));
}

// A KeyCard shows a key, as entry has it from the list. view is that of the Users, with all cards.
export class KeyCard {
  #attempt = new Attempt();

  constructor(entry, view) {
    const key = entry.apiKey;
    Object.assign(this, { view, key, name: mask(key), url: path`/admin/keys/${key}`, copy: copyButton(() => key) });
    [this.code, this.tags, this.facts, this.plot] = ['code', 'span', 'div', 'div'].map((tag) => el(tag));
    const act = (verb, action, style) => rowButton(verb, this.name, action, { class: style });
    this.reveal = act('Show', () => {
      this.copy.hidden = !this.copy.hidden;
      this.update(this.entry);
    });
    this.toggle = act('Disable', () => this.#enableOrDisable());
    this.periods = [7, 30, 90].map((n) => act(`${n} days`, () => this.showUsage(n)));
    this.node = el('section', { class: 'key', 'aria-label': this.name }, el('h3', {}, this.code, this.tags),
      el('div', { class: 'actions' }, this.reveal, this.copy, act('Top up', () => this.#topUp()),
        act('Label', () => this.#label()), act('Move', () => this.#move()), act('Rotate', () => this.#rotate()),
        this.toggle, act('Revoke', () => this.#revoke(), 'danger')),
      messages(), this.facts, el('h4', {}, 'Usage'), el('div', { class: 'actions' }, this.periods), this.plot);
    this.copy.hidden = true;
    this.update(entry);
  }

  update(entry) {
    this.entry = entry;
    const { error, label, enabled, tokensLeft, tokensHeld } = entry;
    const masked = this.copy.hidden;
    this.code.textContent = masked ? this.name : this.key;
    this.reveal.firstChild.data = masked ? 'Show' : 'Hide';
    this.toggle.firstChild.data = enabled === false ? 'Enable' : 'Disable';
    this.tags.replaceChildren(label ? el('span', { class: 'tag' }, label) : '',
      enabled === false ? el('span', { class: 'tag bad' }, 'Disabled') : '');
    this.facts.replaceChildren(...error ? ['What Redis has for this key is malformed, so it is refused.'] : [
      el('p', {}, el('span', { class: 'figure' }, number(tokensLeft)), ' tokens left',
        tokensHeld && `, ${number(tokensHeld)} more are held`),
      el('div', { class: 'grid' }, [factsOf(entry), boundsOf(entry, this.view.groups)].map((rows) =>
        el('dl', {}, rows.filter(Boolean).flatMap(([term, ...value]) => [el('dt', {}, term), el('dd', {}, value)]))))]);
  }

  async showUsage(n = 30) {
    for (const period of this.periods) period.setAttribute('aria-pressed', period.firstChild.data === `${n} days`);
    const { days } = await this.view.read(this.url + `/usage?from=${dayOf(n - 1)}&to=${dayOf(0)}`);
    const series = seriesOf(days, 'byModel', 'tokensCharged');
    this.plot.replaceChildren(series.length > 0
      ? chart({ title: 'Charged by model', what: 'Tokens charged', days: days.map(({ day }) => day), series })
      : el('p', { class: 'faint' }, `Nothing was charged in the last ${n} days.`));
  }

  #ask(verb, fields, text, action, danger = false) {
    const title = verb === 'Label' ? 'Name' : verb; // only its field is labelled so
    return dialog({ title: `${title} ${this.name}${danger ? '?' : ''}`, verb, fields, text, danger,
      action: (values) => action(given(values)) });
  }

  // holder returns the key that has the balance.
  holder() { return this.entry.sharesWith ?? this.key; }

  // #patch changes the key, shows what has become of it and of those that share its balance, and says so.
  async #patch(change, sentenceOf) {
    const { body } = await this.#attempt.send('PATCH', this.url, change);
    const { group, tokensLeft, tokensHeld, refillsAt } = body;
    this.update({ ...body, sharesWith: this.entry.sharesWith });
    for (const card of this.view.cards.filter((one) => one.holder() === this.holder())) {
      card.update({ ...card.entry, group, tokensLeft, tokensHeld, refillsAt });
    }
    showStatus(this.node, sentenceOf(body));
  }

  #topUp() {
    const { sharesWith } = this.entry;
    return this.#ask('Top up', [
      field('Tokens', { name: 'tokens', required: true, hint: 'A negative number takes tokens back.' }),
      checkbox('If fewer are left, take those', 'upTo'), reason(),
    ], sharesWith ? `This changes the balance of ${mask(sharesWith)}, which it shares.` : [], (values) => {
      const n = wholeNumber(values.tokens, 'Tokens');
      return this.#patch({ addTokens: n, upTo: (n < 0 && values.upTo === 'on') || undefined, reason: values.reason },
        ({ added = n, tokensLeft: left }) => `${n < 0 ? 'Took back' : 'Added'} ${count(Math.abs(added), 'token')}: ` +
          `${number(left)} ${left === 1 ? 'is' : 'are'} left.`);
    });
  }

  #label() {
    const label = field('Label', { name: 'label', value: this.entry.label ?? '', hint: 'Its holder sees it, too.' });
    return this.#ask('Label', [label], [], ({ label = null }) =>
      this.#patch({ label }, () => label ? `The label is ${label} now.` : 'The label is removed.'));
  }

  #move() {
    const options = namesOf(this.view.groups);
    return this.#ask('Move',
      [field('Group', { tag: 'select', name: 'group', required: true, options, value: this.entry.group }), reason()],
      'It keeps its balance. Limits, models and refills are those of the new group.',
      (change) => this.#patch(change, ({ group }) => `The key is in the group ${group} now.`));
  }

  async #rotate() {
    let made;
    const grace = field('Grace', { name: 'grace', value: '0',
      hint: 'Seconds for which the old key still works, at most 604,800 (7 days).' });
    await this.#ask('Rotate', this.key.startsWith('user_') ? [grace] : [],
      'A new key takes its place, with the same balance, group, label and expiry.', async ({ grace = '0' }) => {
        const graceSeconds = wholeNumber(grace, 'Grace');
        const { body } = await this.#attempt.send('POST', this.url + '/rotate', { graceSeconds });
        const old = graceSeconds > 0 ? `works for ${count(graceSeconds, 'second')} more` : 'no longer works';
        made = ['New key', body.apiKey, `${this.name} ${old}.`, this.entry.userId];
      }, true);
    if (made) this.view.made(...made);
  }

  #enableOrDisable() {
    if (this.entry.enabled === false) return this.#patch({ enabled: true }, () => 'The key is enabled.');
    return this.#ask('Disable', [reason()], 'It is refused until you enable it, as are keys that share its balance.',
      ({ reason }) => this.#patch({ enabled: false, reason }, () => 'The key is disabled.'), true);
  }

  async #revoke() {
    const text = ['It stops working at once, as do keys that share its balance. This cannot be undone.'];
    const fields = [reason()];
    if (/^(google|apple):/.test(this.entry.userId)) {
      text.push('Its user can sign in again, and gets a key with the balance 0. To keep them out, disable the key.');
      fields.unshift(checkbox('Forget the user: the next sign-in is like the first', 'forget'));
    }
    const done = await this.#ask('Revoke', fields, text, ({ forget, reason }) =>
      request('DELETE', this.url + query({ forget: forget && 'true', reason })), true);
    if (!done) return;
    for (const { key, entry, node } of this.view.cards) if ([key, entry.sharesWith].includes(this.key)) node.remove();
    this.view.say(`${this.name} is revoked.`);
  }
}
