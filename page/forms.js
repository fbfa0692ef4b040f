// Shows forms for what is changed most in a config: see config.js for what it is given. It is being built.
export function showForms() {}
