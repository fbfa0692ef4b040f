// Shows an API key: masked, with what binds it, what it has used and what can be done with it.

import { Attempt, path, query, request } from './api.js';
import { chart, dayOf, seriesOf } from './chart.js';
import { button, copyButton, dialog, el, field, mask, messages, newID, number, showStatus, time } from './dom.js';
import { boundsOf, count, factsOf, tagsOf, wholeNumber } from './keytext.js';

const columns = [['requests', 'Requests'], ['inputTokens', 'Input tokens'], ['outputTokens', 'Output tokens'],
  ['tokensGranted', 'Tokens granted']];

const reason = () => field('Reason', { name: 'reason', hint: 'Optional, for the log.' });

function checkbox(label, name) {
  const id = newID();
  return el('div', { class: 'check' }, el('input', { id, type: 'checkbox', name }), el('label', { for: id }, label));
}

// A KeyCard shows a key, as entry has it from the list. view is what the cards on display share: the groups of the
// present config (a Map; null: it is broken), the signal that ends with them, all cards, rotated(entry, key, sentence)
// and say(sentence).
export class KeyCard {
  #shown = false;
  #usage = new AbortController();
  #attempts = new Map(); // by action: what is asked for again after an error has the same Idempotency-Key

  constructor(entry, view) {
    const key = entry.apiKey;
    Object.assign(this, { view, key, name: mask(key), url: path`/admin/keys/${key}`, copy: copyButton(() => key) });
    [this.code, this.tags, this.facts, this.plot] = ['code', 'span', 'div', 'div'].map((tag) => el(tag));
    this.reveal = this.#button('Show', () => {
      this.#shown = !this.#shown;
      this.update(this.entry);
    });
    this.toggle = this.#button('Disable', () => this.#enableOrDisable());
    this.periods = [7, 30, 90].map((n) => this.#button(`${n} days`, () => this.showUsage(n)));
    this.node = el('section', { class: 'key', 'aria-label': this.name }, el('h3', {}, this.code, this.tags),
      el('div', { class: 'actions' }, this.reveal, this.copy,
        this.#button('Top up', () => this.#topUp()), this.#button('Label', () => this.#label()),
        this.#button('Move', () => this.#move()), this.#button('Rotate', () => this.#rotate()), this.toggle,
        this.#button('Revoke', () => this.#revoke(), 'danger')),
      messages(), this.facts, el('h4', {}, 'Usage'), el('div', { class: 'actions' }, this.periods), this.plot);
    this.update(entry);
  }

  // #button returns a button whose name ends in hidden words that say which key it is for.
  #button(name, action, style) {
    return button([name, el('span', { class: 'visually-hidden' }, ' ' + this.name)], action, { class: style });
  }

  // update shows the key as the server says it is now.
  update(entry) {
    this.entry = entry;
    const { error, enabled, tokensLeft, tokensHeld } = entry;
    this.code.textContent = this.#shown ? this.key : this.name;
    this.copy.hidden = !this.#shown;
    this.reveal.firstChild.data = this.#shown ? 'Hide' : 'Show';
    this.toggle.firstChild.data = enabled === false ? 'Enable' : 'Disable';
    this.toggle.className = enabled === false ? '' : 'danger';
    this.tags.replaceChildren(...tagsOf(entry).map(([text, style]) => el('span', { class: `tag ${style}` }, text)));
    this.facts.replaceChildren(...error ? ['What Redis has for this key is malformed, so it is refused.'] : [
      el('p', {}, el('span', { class: 'figure' }, number(tokensLeft)), ' tokens left',
        tokensHeld && `, ${number(tokensHeld)} more are held`),
      el('div', { class: 'grid' }, [factsOf(entry), boundsOf(entry, this.view.groups)].map((rows) =>
        el('dl', {}, rows.flatMap(([term, ...value]) => [el('dt', {}, term), el('dd', {}, value)]))))]);
  }

  // showUsage shows what the key has used in the last n days.
  async showUsage(n = 30) {
    this.#usage.abort();
    this.#usage = new AbortController();
    for (const period of this.periods) period.setAttribute('aria-pressed', period.firstChild.data === `${n} days`);
    const { body: { days } } = await request('GET', this.url + `/usage?from=${dayOf(n - 1)}&to=${dayOf(0)}`,
      { signal: AbortSignal.any([this.view.signal, this.#usage.signal]) });
    this.plot.replaceChildren(days.some((day) => day.requests || day.tokensCharged || day.tokensGranted)
      ? chart({ title: 'Charged by model', what: 'Tokens charged', days: days.map(({ day }) => day),
        series: seriesOf(days, 'byModel', 'tokensCharged'),
        columns: columns.map(([member, name]) => ({ name, values: days.map((day) => day[member]) })) })
      : el('p', { class: 'faint' }, `Nothing in the last ${n} days.`));
  }

  #ask(verb, fields, text, action, danger = false, what = verb) {
    return dialog({ title: `${what} ${this.name}${danger ? '?' : ''}`, verb, fields, text, action, danger });
  }

  async #send(action, method, url, body) {
    if (!this.#attempts.has(action)) this.#attempts.set(action, new Attempt());
    return (await this.#attempts.get(action).send(method, url, body)).body;
  }

  // #patch changes members of the key, shows what has become of it and of those that share its balance, and says so.
  async #patch(members, reason, sentenceOf) {
    const body = await this.#send(Object.keys(members)[0], 'PATCH', this.url,
      { ...members, reason: reason?.trim() || undefined });
    const { group, tokensLeft, tokensHeld, refillsAt } = body;
    const { sharesWith = this.key } = this.entry;
    this.update({ ...body, apiKey: this.key, sharesWith: this.entry.sharesWith });
    for (const other of this.view.cards) {
      if (other !== this && (other.entry.sharesWith ?? other.key) === sharesWith) {
        other.update({ ...other.entry, group, tokensLeft, tokensHeld, refillsAt });
      }
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
      return this.#patch({ addTokens: n, upTo: n < 0 && values.upTo ? true : undefined }, values.reason,
        ({ added = n, tokensLeft: left }) => `${n < 0 ? 'Took back' : 'Added'} ${count(Math.abs(added), 'token')}: ` +
          `${number(left)} ${left === 1 ? 'is' : 'are'} left.`);
    });
  }

  #label() {
    const label = field('Label', { name: 'label', value: this.entry.label ?? '', hint: 'Its holder sees it, too.' });
    return this.#ask('Label', [label], [], (values) => {
      const text = values.label.trim() || null;
      return this.#patch({ label: text }, '', () => text ? `The label is ${text} now.` : 'The label is removed.');
    }, false, 'Name');
  }

  #move() {
    const options = [...this.view.groups?.keys() ?? []];
    const value = options.includes(this.entry.group) ? this.entry.group : options[0];
    return this.#ask('Move', [field('Group', { tag: 'select', name: 'group', options, value }), reason()],
      'It keeps its balance. Limits, models and refills are those of the new group.',
      ({ group, reason }) => this.#patch({ group }, reason, () => `The key is in the group ${group} now.`));
  }

  async #rotate() {
    let made, end;
    const grace = field('Grace', { name: 'grace', value: '0',
      hint: 'Seconds for which the old key works beside the new one, at most 604,800 (7 days). With 0 it is dead.' });
    const done = await this.#ask('Rotate', this.key.startsWith('user_') ? [grace] : [],
      'A new key takes its place, with the same balance, group, label and expiry.', async (values) => {
        const graceSeconds = wholeNumber(values.grace || '0', 'Grace');
        made = await this.#send('rotate', 'POST', this.url + '/rotate', graceSeconds ? { graceSeconds } : undefined);
        end = graceSeconds && new Date(Date.now() + graceSeconds * 1000).toISOString();
      }, true);
    if (!done) return;
    this.view.rotated(this.entry, made.apiKey, [this.name, ...end ? [' works until ', time(end), '.'] : [' is dead.']]);
  }

  #enableOrDisable() {
    if (this.entry.enabled === false) return this.#patch({ enabled: true }, '', () => 'The key is enabled.');
    const text = 'It is refused until you enable it, as are keys that share its balance.';
    return this.#ask('Disable', [reason()], text,
      (values) => this.#patch({ enabled: false }, values.reason, () => 'The key is disabled.'), true);
  }

  async #revoke() {
    const text = ['It is dead at once, as are keys that share its balance. This cannot be undone.'];
    const fields = [reason()];
    if (/^(google|apple):/.test(this.entry.userId)) {
      text.push('Its user can sign in again, and gets a key with the balance 0. To keep them out, disable the key.');
      fields.unshift(checkbox('Forget the user: the next sign-in is like the first', 'forget'));
    }
    const done = await this.#ask('Revoke', fields, text, ({ forget, reason }) =>
      request('DELETE', this.url + query({ forget: forget && 'true', reason: reason.trim() })), true);
    if (!done) return;
    for (const { key, entry, node } of this.view.cards) if ([key, entry.sharesWith].includes(this.key)) node.remove();
    this.view.say(`${this.name} is revoked.`);
  }
}
