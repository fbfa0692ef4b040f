package plainhttp

import (
	"slices"
	"time"
)

// take returns the connection to host that became idle last and is still open; nil if all were closed. One on which
// something has come is closed, so that it is not taken for the response to the next request (RFC 9112, section 9.2).
func (t *Transport) take(host string) *conn {
	for {
		c := t.takeLast(host)
		if c == nil || c.probe.isSilent() {
			return c
		}
		c.Close()
	}
}

func (t *Transport) takeLast(host string) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closing = false
	conns := t.byHost[host]
	if len(conns) == 0 {
		return nil
	}
	c := conns[len(conns)-1]
	t.remove(c, len(conns)-1)
	return c
}

// put keeps c, or closes it if its host has enough. If all hosts together have too many, the one that has been idle
// longest is closed.
func (t *Transport) put(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closing || len(t.byHost[c.host]) >= t.Base.MaxIdleConnsPerHost {
		c.Close()
		return
	}
	if t.byHost == nil {
		t.byHost = make(map[string][]*conn)
	}
	c.idleSince = time.Now()
	c.place = t.idle.PushBack(c)
	t.byHost[c.host] = append(t.byHost[c.host], c)
	if t.idle.Len() > t.Base.MaxIdleConns {
		t.closeOldest()
	}
	if t.sweeping == nil && t.Base.IdleConnTimeout > 0 {
		t.sweeping = time.AfterFunc(t.Base.IdleConnTimeout, t.sweep)
	}
}

// remove removes c, which is the i-th of its host, from those that are idle. The caller holds t.mu.
func (t *Transport) remove(c *conn, i int) {
	t.idle.Remove(c.place)
	if conns := slices.Delete(t.byHost[c.host], i, i+1); len(conns) > 0 {
		t.byHost[c.host] = conns
	} else {
		delete(t.byHost, c.host)
	}
}

// closeOldest closes the connection that has been idle longest. The caller holds t.mu.
func (t *Transport) closeOldest() {
	c := t.idle.Front().Value.(*conn)
	t.remove(c, 0)
	c.Close()
}

// sweep closes the connections that have been idle for too long.
func (t *Transport) sweep() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.idle.Len() > 0 {
		rest := t.Base.IdleConnTimeout - time.Since(t.idle.Front().Value.(*conn).idleSince)
		if rest > 0 {
			t.sweeping.Reset(rest)
			return
		}
		t.closeOldest()
	}
	t.sweeping = nil
}

// CloseIdleConnections closes the connections that are idle, and those that are in use once their responses have come,
// until another request is carried. Those of Base are left alone.
func (t *Transport) CloseIdleConnections() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closing = true
	for t.idle.Len() > 0 {
		t.closeOldest()
	}
}
