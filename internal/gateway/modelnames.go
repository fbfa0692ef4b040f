package gateway

import "strings"

// ModelNames are names of models. One that ends in * stands for all names that begin with what is before it.
type ModelNames []string

// Allow reports whether a model is one of names, as it was asked for or without the date of its snapshot. If names is
// nil, every model is.
func (names ModelNames) Allow(model string) bool {
	if names == nil {
		return true
	}
	undated := withoutSnapshot(model)
	for _, name := range names {
		prefix, isPrefix := strings.CutSuffix(name, "*")
		switch {
		case isPrefix && strings.HasPrefix(model, prefix):
			return true
		case !isPrefix && (name == model || name == undated):
			return true
		}
	}
	return false
}

// withoutSnapshot returns the name of a model without what chooses one of its snapshots: -YYYY-MM-DD, -YYYYMMDD,
// -latest, or @ and what follows. It never returns "" for another name. What follows has no slash and no
// colon: OpenRouter's @preset/name and :online stand for other models, prices and tools.
func withoutSnapshot(model string) string {
	if at := strings.LastIndexByte(model, '@'); at > 0 && !strings.ContainsAny(model[at:], "/:") {
		return model[:at]
	}
	if name, ok := strings.CutSuffix(model, "-latest"); ok && name != "" {
		return name
	}
	for _, form := range []string{"-0000-00-00", "-00000000"} {
		if at := len(model) - len(form); at > 0 && hasForm(model[at:], form) {
			return model[:at]
		}
	}
	return model
}

// hasForm reports whether text, which is as long as form, has a digit for each 0 of it, and is the same otherwise.
func hasForm(text, form string) bool {
	for i := range len(form) {
		isDigit := '0' <= text[i] && text[i] <= '9'
		if form[i] == '0' && !isDigit || form[i] != '0' && text[i] != form[i] {
			return false
		}
	}
	return true
}
