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
// called if the last one is too old. Errors: ErrFull; that of info.
func (g *memoryGauge) claim(size int64, info func() (string, error)) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if time.Since(g.readAt) > gaugeMaxAge {
		reply, err := info()
		if err != nil {
			return err
		}
		g.used, _ = strconv.ParseInt(infoField(reply, "used_memory"), 10, 64) // 0 if it is not known
		g.max, _ = strconv.ParseInt(infoField(reply, "maxmemory"), 10, 64)
		g.readAt = time.Now()
	}
	if g.max > 0 && g.used+size > g.max/4*3 {
		return ErrFull
	}
	g.used += size
	return nil
}
