package main

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"
)

const (
	startCheckTimeout = time.Second // for each step of the look at Redis at start
	startCheckKeys    = 1000        // that are looked at, at least, if there are so many
)

// foreignKeyError says that a key of tollgate holds what tollgate never writes there.
type foreignKeyError struct{ key string }

func (e foreignKeyError) Error() string {
	return fmt.Sprintf("Redis seems to be used by another application: its key %s is not of the type that tollgate "+
		"writes; tollgate needs a Redis, or a database of one, of its own", e.key)
}

// LooksEmpty reports whether Redis has none of tollgate's keys, as far as that can be seen at little cost: the set of
// tenants, which lasts as long as the data does, and the config of seedTenant are missing, and none of about the first
// startCheckKeys keys is tollgate's. The error is a foreignKeyError if one of these two is another application's. If
// Redis does not tell, it does not look empty.
func (s *store) LooksEmpty() (bool, error) {
	for _, look := range [][]any{{"SRANDMEMBER", tenantsRedisKey}, {"GETRANGE", configRedisKey(seedTenant), 0, 0}} {
		command, key := look[0].(string), look[1].(string)
		found, err := redis.String(s.redis.ReadDispensable(time.Now().Add(startCheckTimeout), command, key, look[2:]...))
		switch {
		case isMalformed(err):
			return false, foreignKeyError{key}
		case err != nil && !errors.Is(err, redis.ErrNil) || found != "":
			return false, nil
		}
	}
	errStop := errors.New("enough was seen")
	seen, empty := 0, true
	err := s.redis.Scan("*", startCheckKeys, startCheckTimeout, func(names []string) error {
		for _, name := range names {
			empty = empty && !isOwnName(name)
		}
		if seen += len(names); !empty || seen >= startCheckKeys {
			return errStop
		}
		return nil
	})
	return empty && (err == nil || errors.Is(err, errStop)), nil
}

// isOwnName reports whether a key in Redis has the name of one in which tollgate keeps what must last.
func isOwnName(name string) bool {
	kind, _, _ := strings.Cut(strings.TrimPrefix(name, "{"), ":")
	return kind == "tenant" || kind == "apiKey" || kind == "userKeys" || kind == "signIn"
}
