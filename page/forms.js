// The forms of the view Config for what is changed most. Each changes the text of the editor, and saves it.

import { button, dialog, el, messagesOf, rowButton } from './dom.js';
import { endpointsSection } from './endpoints.js';
import { groupsSection } from './groups.js';
import { remove } from './json.js';
import { bind, Config, create, fieldOf, member, section } from './members.js';
import { paymentsSection } from './prices.js';

// showForms fills a container with forms for the text of the editor of config.js.
export function showForms(container, editor) { new Forms(container, editor).render(); }

class Forms {
  #container;

  constructor(container, editor) {
    this.#container = container;
    this.editor = editor;
  }

  render() {
    const sections = [groupsSection, endpointsSection, originsSection, paymentsSection];
    try {
      const config = new Config(this.editor.text());
      this.#container.replaceChildren(...sections.map((one) => one(this, config)));
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
      this.#container.replaceChildren(el('p', { class: 'faint' }, 'The forms are back as soon as the text is JSON.'));
    }
  }

  // ask shows a dialog whose button changes the text, by change(text, values), and saves it.
  async ask(title, verb, change, { text = [], ...options } = {}) {
    const { editor } = this;
    const note = editor.isUnsaved() ? ['The text has other changes that are not saved yet. They are saved, too.'] : [];
    const opener = document.activeElement;
    const index = [...this.#container.children].indexOf(opener.closest('section'));
    await dialog({ ...options, title, verb, text: [text, note].flat(),
      action: (values, form) => this.#save(change(editor.text(), values), messagesOf(form)) });
    if (opener.isConnected) return;
    // The focus goes to the choice in a conflict, or to what is now in the place of the button.
    const conflict = this.#container.parentElement.querySelector('section > [role=alert] ~ div > button:last-of-type');
    const buttons = [...this.#container.children[index].querySelectorAll('button')];
    (conflict ?? buttons.find((one) => one.textContent === opener.textContent) ?? buttons[0]).focus();
  }

  // save saves a text. What the editor says in the messages of a dialog moves to those of the editor. If the text is
  // refused, the one before comes back. After a conflict it does not: the editor asks whose text counts.
  async #save(text, messages) {
    const before = this.editor.text();
    this.editor.change(text);
    const isSaved = await this.editor.save(messages);
    if (!isSaved && messages.hasChildNodes()) {
      this.editor.change(before);
      throw new DOMException('It is shown.', 'AbortError'); // keeps the dialog open
    }
    if (isSaved) messagesOf(this.#container.parentElement).replaceChildren(...messages.childNodes);
    this.render();
  }

  // edit asks for members of the object at base.
  edit(what, base, members, options) {
    const { fields, edit } = bind(members, new Config(this.editor.text()), base);
    return this.ask(`Edit ${what}`, 'Save', edit, { fields, ...options });
  }

  // add asks for the name and the members of a new object in the one at place.
  add(what, place, name, members, options) {
    const { fields, edit } = bind(members);
    return this.ask(`Add ${what}`, 'Add', (text, values) => {
      const at = [...place, values.name.trim()];
      return edit(create(text, at), values, at);
    }, { fields: [fieldOf(name, 'name', ''), ...fields], ...options });
  }

  // remove asks before it removes what is at a path. change(text) may change more.
  remove(what, path, text, change = (now) => now) {
    return this.ask(`Remove ${what}?`, 'Remove', (now) => change(remove(now, path)), { text, danger: true });
  }

  // buttons returns the buttons of a row for the object at base: Edit and, with a warning, Remove.
  buttons(what, of, base, members, warning, options) {
    return el('div', { class: 'actions' }, rowButton('Edit', of, () => this.edit(what, base, members(), options)),
      warning && rowButton('Remove', of, () => this.remove(what, base, warning), { class: 'danger' }));
  }
}

function originsSection(forms, config) {
  const origins = config.list(['cors', 'allowed_origins']);
  const members = [member('Allowed origins', 'allowed_origins', 'lines', {
    hint: 'One a line, with its scheme and without a path. A line with * alone allows all.' })];
  return section('Origins', button('Edit origins', () => forms.edit('origins', ['cors'], members)),
    el('p', {}, origins.length ? origins.join(', ') : 'Pages of other origins cannot call tollgate.'));
}
