package redisdb

import (
	"errors"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/gomodule/redigo/redis"
)

// infoField returns the value of one line of INFO's reply, "" if it has no such line.
func infoField(info, name string) string {
	for line := range strings.Lines(info) {
		if value, ok := strings.CutPrefix(line, name+":"); ok {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// memoryInfo returns what INFO says of the server's memory, "" if the user may not ask.
func (n *node) memoryInfo(deadline time.Time) (string, error) {
	info, err := redis.String(n.doPooled(deadline, "INFO", []any{"memory"}, 0))
	if _, refused := errors.AsType[redis.Error](err); refused {
		return "", nil
	}
	return info, err
}

// memoryGauge estimates how much of a server's memory is used: what the server last said, and what was written since.
type memoryGauge struct {
	mu        sync.Mutex // guards the fields below
	readAt    time.Time
	used, max int64 // bytes; max is 0 if there is no limit
}

// gaugeMaxAge is how long what a server has said of its memory is used.
const gaugeMaxAge = time.Second

// claim counts size more bytes if they leave a quarter of the memory free. info, which returns the reply of INFO, is
// called if the last one is too old. Nobody waits for that of another caller, whose deadline may be later. Errors:
// ErrFull; that of info.
func (g *memoryGauge) claim(size int64, info func() (string, error)) error {
	if g.isOld() {
		reply, err := info()
		if err != nil {
			return err
		}
		g.set(reply)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.max > 0 && g.used+size > g.max/4*3 {
		return ErrFull
	}
	g.used += size
	return nil
}

func (g *memoryGauge) isOld() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return time.Since(g.readAt) > gaugeMaxAge
}

// set notes what INFO says; numbers that it does not have are 0.
func (g *memoryGauge) set(info string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.used, _ = strconv.ParseInt(infoField(info, "used_memory"), 10, 64)
	g.max, _ = strconv.ParseInt(infoField(info, "maxmemory"), 10, 64)
	g.readAt = time.Now()
}
