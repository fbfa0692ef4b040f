package gateway

import (
	"cmp"
	"net/http"
	"slices"
	"strconv"
	"strings"

	"tollgate/internal/llmwire"
	"tollgate/internal/strict"
)

// A priceList has the models that an endpoint allows, each with its price.
type priceList struct {
	named     map[string]*price // by name
	snapshots map[string]*price // by name without what chooses a snapshot; of several the dearest
	prefixes  map[string]*price // by what a name must begin with
	lengths   []int             // of the prefixes, each once, the longest first
}

// add adds the price of a model, or of all whose names begin with what is before the * at the name's end.
func (l *priceList) add(name string, p *price) {
	if prefix, isPrefix := strings.CutSuffix(name, "*"); isPrefix {
		setPrice(&l.prefixes, prefix, p)
		at, found := slices.BinarySearchFunc(l.lengths, len(prefix), func(a, b int) int { return cmp.Compare(b, a) })
		if !found {
			l.lengths = slices.Insert(l.lengths, at, len(prefix))
		}
		return
	}
	l.addNamed(name, p)
}

// addNamed adds the price of a model whose name may end in *.
func (l *priceList) addNamed(name string, p *price) {
	setPrice(&l.named, name, p)
	undated := withoutSnapshot(name)
	other := l.snapshots[undated]
	if other == nil || name == undated || l.named[undated] == nil && other.weight() < p.weight() {
		setPrice(&l.snapshots, undated, p)
	}
}

// setPrice sets a price in a map that may be nil.
func setPrice(prices *map[string]*price, name string, p *price) {
	if *prices == nil {
		*prices = make(map[string]*price)
	}
	(*prices)[name] = p
}

// find returns the price of a model: of the one of that name, else of another snapshot of the same model, else of the
// longest prefix of its name. It returns nil if the model is not allowed, as the one without a name never is.
func (l *priceList) find(model string) *price {
	if p := l.listed(model); p != nil || model == "" {
		return p
	}
	for _, length := range l.lengths {
		if length <= len(model) {
			if p := l.prefixes[model[:length]]; p != nil {
				return p
			}
		}
	}
	return nil
}

// listed is find without prefixes.
func (l *priceList) listed(model string) *price {
	if p := l.named[model]; p != nil {
		return p
	}
	return l.snapshots[withoutSnapshot(model)]
}

// each calls f with each price.
func (l *priceList) each(f func(*price)) {
	for _, prices := range []map[string]*price{l.named, l.prefixes} {
		for _, p := range prices {
			f(p)
		}
	}
}

// named returns the models that the config allows by name, as clients of a format ask for them, each once.
func (all Endpoints) named(format llmwire.Format) (models []llmwire.Model) {
	listed := make(map[string]bool)
	for _, e := range all.listedFor(format) {
		for _, name := range e.models {
			if !listed[name] {
				listed[name] = true
				models = append(models, llmwire.Model{Name: name, Endpoint: e.Name})
			}
		}
	}
	return models
}

// Model returns the model of that name, if a request in that format or in another one of the same API may ask for it.
// Otherwise it returns an Error of status 404.
func (all Endpoints) Model(format llmwire.Format, name string) (llmwire.Model, error) {
	all = all.listedFor(format)
	if len(all) == 0 {
		return llmwire.Model{}, errNoFormat(format)
	}
	found, _ := all.find(name)
	if len(found) == 0 {
		return llmwire.Model{}, errNoModel(name)
	}
	return llmwire.Model{Name: name, Endpoint: found[0].Name}, nil
}

func errNoFormat(format llmwire.Format) Error {
	return Error{http.StatusNotFound,
		"No endpoint has this format: the path of its URL would end in " + format.URLSuffix()}
}

func errNoModel(name string) Error {
	return Error{http.StatusNotFound, "No endpoint allows the model " + strconv.Quote(strict.Shorten(name))}
}

// speaking returns the endpoints of a format.
func (all Endpoints) speaking(format llmwire.Format) Endpoints {
	return all.where(func(e *Endpoint) bool { return e.format == format })
}

// listedFor returns the endpoints, of whatever kind, whose models a client of a format is shown.
func (all Endpoints) listedFor(format llmwire.Format) Endpoints {
	return all.where(func(e *Endpoint) bool {
		if e.session != nil && e.session.isUltravox {
			return false
		}
		return e.format.SharesModels(format) // that of a session is the zero Format, which is OpenAI's
	})
}

// find returns the endpoints that allow a model, and the model's name there: endpoint/model chooses the endpoint.
func (all Endpoints) find(model string) (Endpoints, string) {
	if name, rest, ok := strings.Cut(model, "/"); ok {
		for _, e := range all {
			if e.Name == name && e.prices.find(rest) != nil {
				return Endpoints{e}, rest
			}
		}
	}
	return all.allowing(model), model
}

// allowing returns the endpoints that allow a model of exactly that name.
func (all Endpoints) allowing(model string) Endpoints {
	return all.where(func(e *Endpoint) bool { return e.prices.find(model) != nil })
}

// where returns the endpoints for which f reports true.
func (all Endpoints) where(f func(*Endpoint) bool) (found Endpoints) {
	for _, e := range all {
		if f(e) {
			found = append(found, e)
		}
	}
	return found
}
