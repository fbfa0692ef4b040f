package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redisdb"
)

// AddUsage adds counts to those of a tenant's day. ok is false if Redis has certainly not got them. If it may have got
// them, they are not to be added again.
func (s *store) AddUsage(deadline time.Time, day usageDay, d *dayUsage) (ok bool) {
	keys := []string{usageRedisKey(day.tenantID, day.day), generationRedisKey(day.tenantID)}
	args := []any{day.generation, maxUsageFields, usageTTL.Milliseconds()}
	d.fields(func(field, instead string, sum *int64) {
		if *sum > 0 {
			args = append(args, field, instead, *sum)
		}
	})
	_, err := s.redis.EvalDispensable(deadline, usageScript, keys, args...)
	return err == nil || redisdb.MayHaveRun(err)
}

// fields calls f for each sum, with the field of the hash that it is in, and the one to add it to if there are too
// many.
func (d *dayUsage) fields(f func(field, instead string, sum *int64)) {
	f("requests", "requests", &d.total.requests)
	f("charged", "charged", &d.total.charged)
	f("granted", "granted", &d.granted)
	for kind, all := range map[string]map[string]*usageSums{"group": d.groups, "endpoint": d.endpoints} {
		for name, sums := range all {
			for _, one := range sums.all() {
				head := kind + " " + one.name + " "
				f(head+name, head+otherName, one.sum)
			}
		}
	}
}

// Usage returns the counts of a tenant on each of n days from the day first on. It reads usageStep days at a time:
// Redis serves others in between. Error: ErrUnavailable.
func (s *store) Usage(deadline time.Time, t *tenant, first int64, n int) ([]*dayUsage, error) {
	all := make([]string, n)
	for i := range all {
		all[i] = usageRedisKey(t.id, first+int64(i))
	}
	days := make([]*dayUsage, 0, n)
	for keys := range slices.Chunk(all, usageStep) {
		replies, err := s.redis.ReadEach(deadline, "HGETALL", keys)
		if err != nil {
			return nil, fmt.Errorf("read the usage of tenant %s: %w", t.id, err)
		}
		for _, reply := range replies {
			fields, err := redis.StringMap(reply, nil)
			if err != nil {
				return nil, fmt.Errorf("read the usage of tenant %s: %w", t.id, errBadReply)
			}
			day := new(dayUsage)
			if fields["generation"] == t.generation {
				day.read(fields)
			}
			days = append(days, day)
		}
	}
	return days, nil
}

// read reads the fields of a hash. It ignores those that it does not know.
func (d *dayUsage) read(fields map[string]string) {
	for field, text := range fields {
		value, err := strconv.ParseInt(text, 10, 64)
		if err != nil || value < 0 {
			continue
		}
		value = min(value, maxAmount)
		kind, rest, _ := strings.Cut(field, " ")
		sum, name, _ := strings.Cut(rest, " ")
		all := &d.groups
		switch kind {
		case "requests":
			d.total.requests = value
			continue
		case "charged":
			d.total.charged = value
			continue
		case "granted":
			d.granted = value
			continue
		case "group":
		case "endpoint":
			all = &d.endpoints
		default:
			continue
		}
		if *all == nil {
			*all = make(map[string]*usageSums)
		}
		if (*all)[name] == nil {
			(*all)[name] = new(usageSums)
		}
		for _, one := range (*all)[name].all() {
			if one.name == sum {
				*one.sum = value
			}
		}
	}
}
