// The forms of the view Config for what is changed most. Each changes the text of the editor, and saves it.

import { button, dialog, el, messages, messagesOf, rowButton } from './dom.js';
import { endpointsSection } from './endpoints.js';
import { groupsSection } from './groups.js';
import { remove } from './json.js';
import { bind, Config, create, member, section } from './members.js';
import { paymentsSection } from './prices.js';

// showForms fills a container with forms for the text of the editor of config.js.
export function showForms(container, editor) { new Forms(container, editor).render(); }

class Forms {
  constructor(container, editor) { Object.assign(this, { container, editor }); }

  render() {
    try {
      const config = new Config(this.editor.text());
      this.container.replaceChildren(messages(), ...[groupsSection, endpointsSection, originsSection, paymentsSection]
        .map((one) => one(this, config)));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      this.container.replaceChildren(el('p', { class: 'faint' }, 'The forms are back as soon as the text is JSON.'));
    }
  }

  // ask shows a dialog whose button changes the text, by change(text, values), and saves it.
  async ask(title, verb, change, { text = '', ...options } = {}) {
    const { container, editor } = this;
    const note = editor.isUnsaved() ? 'The text has other changes that are not saved yet. They are saved, too.' : '';
    const buttons = () => [...container.querySelectorAll('button')];
    const opener = document.activeElement;
    const place = buttons().indexOf(opener);
    await dialog({ ...options, title, verb, text: [text, note].filter(Boolean),
      action: (values, form) => this.save(change(editor.text(), values), messagesOf(form)) });
    if (opener.isConnected) return;
    // The focus goes to the choice in a conflict, or to what is now in the place of the button.
    const conflict = container.parentElement.querySelector('section:not([hidden]) > [role=alert] ~ div > :last-child');
    const now = buttons();
    (conflict ?? now.find((one) => one.textContent === opener.textContent) ?? now[place] ?? now.at(-1))?.focus();
  }

  // save saves a text. What the editor says in the messages of a dialog moves to those of the editor. If the text is
  // refused, the one before comes back. After a conflict it does not: the editor asks whose text counts.
  async save(text, messages) {
    const before = this.editor.text();
    this.editor.change(text);
    const isSaved = await this.editor.save(messages);
    if (!isSaved && messages.hasChildNodes()) {
      this.editor.change(before);
      throw new DOMException('It is shown.', 'AbortError'); // keeps the dialog open
    }
    if (isSaved) messagesOf(this.container.parentElement).replaceChildren(...messages.childNodes);
    this.render();
  }

  // edit asks for members of the object at base.
  edit(what, base, members, text) {
    const { fields, edit } = bind(members, new Config(this.editor.text()), base);
    return this.ask(`Edit ${what}`, 'Save', edit, { fields, text });
  }

  // add asks for the name and the members of a new object in the one at place.
  add(what, place, name, members, text) {
    return this.ask(`Add ${what}`, 'Add', (now, values) => create(now, place, members, values),
      { fields: [name, bind(members).fields], text });
  }

  // remove asks before it removes what is at paths.
  remove(what, text, ...paths) {
    return this.ask(`Remove ${what}?`, 'Remove', (now) => paths.reduce(remove, now), { text, danger: true });
  }

  // buttons returns the buttons of a row for the object at base: Edit and, with a warning, Remove.
  buttons(what, of, base, members, warning, text) {
    return el('div', { class: 'actions' }, rowButton('Edit', of, () => this.edit(what, base, members, text)),
      warning && rowButton('Remove', of, () => this.remove(what, warning, base), { class: 'danger' }));
  }
}

function originsSection(forms, config) {
  const origins = config.list(['cors', 'allowed_origins']);
  const members = [member('Allowed origins', 'allowed_origins', 'lines', {
    hint: 'One a line, with its scheme and without a path. A line with * alone allows all.' })];
  return section('Origins', button('Edit origins', () => forms.edit('origins', ['cors'], members)),
    el('p', {}, origins.join(', ') || 'Pages of other origins cannot call tollgate.'));
}
