package gateway

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"tollgate/internal/fairpool"
	"tollgate/internal/llmwire"
)

// An endpoint whose models are not all named in the config may have any that its provider has: that is asked for its
// list. Whoever writes the config chooses the provider, so all that a list takes is bounded.
const (
	listTimeout    = 2 * time.Second  // for a provider to send its list
	listKept       = 5 * time.Minute  // before a provider is asked again
	listRetry      = 30 * time.Second // before one is asked again that has not sent a list
	maxListBody    = 4 << 20          // bytes
	maxLists       = 256              // that are kept, each of 64 KiB at most
	maxListFetches = 32               // at a time
	maxListed      = 16               // endpoints whose providers one request waits for
)

// A ModelsCall is a client's request for the models that it may ask for.
type ModelsCall struct {
	Tenant string // whom the endpoints belong to, as in Call
	Hops   string // as in Call
	Format llmwire.Format

	Memory *fairpool.Claim // for what providers send
	Place  *fairpool.Claim // among the requests that wait, from Gateway.Place; taken while providers are asked
}

// Models returns the models of all kinds that may be asked for in a format, or in another one of the same API, each
// once: those that are named in the config, then
// those that the providers of endpoints with names such as * list, as far as they are known within 2 s. A list is kept
// for 5 minutes, and longer if its provider cannot be reached.
func (g *Gateway) Models(all Endpoints, c *ModelsCall) []llmwire.Model {
	models := all.named(c.Format)
	listed := make(map[string]bool, len(models))
	for _, m := range models {
		listed[m.Name] = true
	}
	open := all.listedFor(c.Format).where((*Endpoint).isOpen)
	open = open[:min(len(open), maxListed)]
	for i, names := range g.listsOf(open, c) {
		for _, name := range names {
			if open[i].prices.find(name) != nil && !listed[name] {
				listed[name] = true
				models = append(models, llmwire.Model{Name: name, Endpoint: open[i].Name})
			}
		}
	}
	return models
}

// isOpen reports whether the endpoint allows models that the config does not name, and its provider can be asked for
// them. The provider of sessions has other models, too, which cannot be told apart.
func (e *Endpoint) isOpen() bool { return len(e.patterns) > 0 && e.session == nil }

// listsOf returns the names that the provider of each endpoint lists. All providers are asked at the same time.
func (g *Gateway) listsOf(open Endpoints, c *ModelsCall) [][]string {
	all := make([][]string, len(open))
	var waiting sync.WaitGroup
	for i, e := range open {
		waiting.Go(func() { all[i] = g.listOf(e, c) })
	}
	waiting.Wait()
	return all
}

// listOf returns the names that the provider of e lists.
func (g *Gateway) listOf(e *Endpoint, c *ModelsCall) []string {
	list := g.lists.find(newListID(e, c.Tenant), c.Tenant)
	names, isDue := g.lists.known(list)
	if !isDue || TakePlace(c.Place) != nil {
		return names
	}
	fetch := g.lists.fetches.Claim(c.Tenant, "")
	defer fetch.Release()
	ended, begun := g.lists.begin(list, fetch.Add(1) == nil)
	switch {
	case begun:
		found, err := g.fetchList(e, c)
		g.lists.end(list, found, err)
		if err != nil && err != errNoListMemory && g.ctx.Err() == nil {
			g.warnOfNoList(e, c.Tenant, err)
		}
	case ended != nil: // another request has begun it
		fetch.Release()
		timeout := time.NewTimer(listTimeout)
		defer timeout.Stop()
		select {
		case <-ended:
		case <-timeout.C:
		}
	}
	names, _ = g.lists.known(list)
	return names
}

var errNoListMemory = errors.New("there is no memory for the list")

// A listError is why a provider's list cannot be used, in words that have no part of a config or a response.
type listError string

func (e listError) Error() string { return string(e) }

// fetchList asks the provider of e for its list. Errors: a listError; errNoListMemory; those of the connection.
func (g *Gateway) fetchList(e *Endpoint, c *ModelsCall) ([]string, error) {
	to := e.modelsURL()
	if _, fault := e.credentialFault(); fault != "" || !g.options.Keys.allow(e, to) {
		return nil, listError("the operator's key may not be sent there, or the key is no header's value")
	}
	ctx, cancel := context.WithTimeout(g.ctx, listTimeout)
	defer cancel()
	request := (&http.Request{
		Method: http.MethodGet, URL: to, Host: to.Host, Header: modelsHeader(e, c.Hops),
		Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}).WithContext(ctx)
	response, err := g.transports.of(to).RoundTrip(request) // follows no redirect
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch {
	case response.StatusCode != http.StatusOK:
		return nil, listError(fmt.Sprintf("its response is %d", response.StatusCode))
	case !isIdentity(response.Header):
		return nil, listError("its response is compressed")
	}
	memory := c.Memory.Another()
	defer memory.Release()
	body, err := memory.ReadAll(response.Body, response.ContentLength, FreeBodyBytes, maxListBody)
	switch err {
	case nil:
	case fairpool.ErrTooLong:
		return nil, listError("it is too long")
	case fairpool.ErrShare, fairpool.ErrFull:
		return nil, errNoListMemory
	default:
		return nil, err
	}
	names, err := llmwire.ModelNames(body)
	if err != nil {
		return nil, listError("it is no JSON object with an array data")
	}
	return names, nil
}

// modelsHeader returns the header of a request for the list of e's provider that has come through hops.
func modelsHeader(e *Endpoint, hops string) http.Header {
	header := ownHeader(e, hops, "")
	delete(header, "Content-Type") // it has no body
	return header
}

// modelsURL returns the URL of the list of e's provider, beside that of e.
func (e *Endpoint) modelsURL() *url.URL {
	const resource = "/models"
	u := (&endpointRequest{to: e, query: e.format.ModelsQuery()}).url()
	u.Path = strings.TrimSuffix(u.Path, e.format.URLSuffix()) + resource
	if u.RawPath != "" {
		u.RawPath = strings.TrimSuffix(u.RawPath, e.format.URLSuffix()) + resource
	}
	return u
}

// modelLists are the lists of models that providers have sent. Its methods may be called at the same time.
type modelLists struct {
	fetches *fairpool.Pool // that are under way

	mu    sync.Mutex // guards the following, and what is in the lists
	lists map[listID]*modelList
}

// A listID is the SHA-256 of all that the list which a provider sends depends on, and of whom it is for.
type listID [sha256.Size]byte

// A modelList is the list of one provider.
type modelList struct {
	tenant string
	used   time.Time     // when it was last asked for
	names  []string      // as the provider has sent them last
	next   time.Time     // when the provider is to be asked again
	ended  chan struct{} // is closed when the provider has been asked; nil if it is not being asked
}

func newModelLists(tenantShare float64) *modelLists {
	return &modelLists{fetches: fairpool.New(maxListFetches, tenantShare), lists: make(map[listID]*modelList)}
}

func newListID(e *Endpoint, tenant string) listID {
	name, value := e.credential()
	return sha256.Sum256(appendParts(nil, tenant, e.modelsURL().String(), e.keyName, name, value))
}

// find returns the list of a tenant with that ID, which is a new one if it was not asked for before.
func (m *modelLists) find(id listID, tenant string) *modelList {
	m.mu.Lock()
	defer m.mu.Unlock()
	list := m.lists[id]
	if list == nil {
		if len(m.lists) >= maxLists {
			m.evict()
		}
		list = &modelList{tenant: tenant}
		m.lists[id] = list
	}
	list.used = time.Now()
	return list
}

// evict makes room for a list: of those of the tenant with the most lists, that one goes which was not used for the
// longest time, unless its provider is being asked. The caller holds m.mu.
func (m *modelLists) evict() {
	counts := make(map[string]int)
	for _, list := range m.lists {
		counts[list.tenant]++
	}
	var oldest listID
	var found *modelList
	for id, list := range m.lists {
		if list.ended != nil {
			continue
		}
		if found == nil || counts[list.tenant] > counts[found.tenant] ||
			counts[list.tenant] == counts[found.tenant] && list.used.Before(found.used) {
			oldest, found = id, list
		}
	}
	delete(m.lists, oldest)
}

// known returns the names that are known, and whether the provider is being asked, or should be.
func (m *modelLists) known(l *modelList) (names []string, isDue bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return l.names, l.ended != nil || !time.Now().Before(l.next)
}

// begin notes that the provider is being asked, until end is called, if it should be and may be. If it is being asked
// already, ended is closed at the end of that.
func (m *modelLists) begin(l *modelList, may bool) (ended <-chan struct{}, begun bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.ended != nil || !may || time.Now().Before(l.next) {
		return l.ended, false
	}
	l.ended = make(chan struct{})
	return l.ended, true
}

// end notes what the provider has sent. If that has failed, what it sent before still counts.
func (m *modelLists) end(l *modelList, names []string, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if l.next = time.Now().Add(listRetry); err == nil {
		l.names, l.next = names, time.Now().Add(listKept)
	}
	close(l.ended)
	l.ended = nil
}
