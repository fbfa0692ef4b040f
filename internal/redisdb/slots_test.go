package redisdb

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gomodule/redigo/redis"

	"tollgate/internal/redistest"
)

func TestKeySlot(t *testing.T) {
	tests := []struct {
		key  string
		slot int
	}{ // as CLUSTER KEYSLOT of Redis 7.0
		{"", 0}, {"123456789", 0x31c3}, {"{123456789}x", 0x31c3}, {"x{123456789}{y}", 0x31c3},
		{"tenants", 10927}, {"login:203.0.113.7", 3151}, {"tenant:abc:config", 4227}, {"{tenant:abc:config}:history", 4227},
	}
	for _, test := range tests {
		if got := Slot(test.key); got != test.slot {
			t.Errorf("%q: got %d, want %d", test.key, got, test.slot)
		}
	}
}

// The digits are those that the search must find first, for every slot and wherever it begins.
func TestSlotDigits(t *testing.T) {
	const prefix = "apiKey:user_11111111-2222-4333-8444-55555555"
	var numbers [slotCount][]int // that lead to each slot, in order
	for n := range 1 << 16 {
		slot := Slot(fmt.Sprintf("%s%04x", prefix, n))
		numbers[slot] = append(numbers[slot], n)
	}
	missing := 0
	for slot, all := range numbers {
		if len(all) == 0 {
			missing++
			if missing%8 > 0 { // to try all digits takes long
				continue
			}
		}
		first := slot * 40503 % (1 << 16)
		got, ok := SlotDigits(prefix, slot, uint16(first))
		if len(all) == 0 {
			if ok {
				t.Errorf("slot %d: got %q, but there are none", slot, got)
			}
			continue
		}
		want := all[0]
		if i, _ := slices.BinarySearch(all, first); i < len(all) {
			want = all[i]
		}
		if want := fmt.Sprintf("%04x", want); !ok || got != want {
			t.Errorf("slot %d from %04x: got %q, %t, want %q", slot, first, got, ok, want)
		}
	}
	if missing < slotCount/10 || missing > slotCount/4 {
		t.Errorf("%d of %d slots have none", missing, slotCount)
	}
}

func TestKeySlotAgreesWithRedis(t *testing.T) {
	t.Parallel()
	c := redistest.SharedCluster(t)
	conn := c.Nodes[0].MustDial(t)
	defer conn.Close()
	keys := []string{"", "{}", "{}x", "a{}b", "{{a}}", "x{a}{b}", "{a", "a}", "é{ü}"}
	for i := range 64 {
		keys = append(keys, strings.Repeat("k", i), newKeyLike(i))
	}
	for _, key := range keys {
		if want := redistest.MustDo(t, conn, "CLUSTER", "KEYSLOT", key); want != int64(Slot(key)) {
			t.Errorf("%q: got %d, want %d", key, Slot(key), want)
		}
	}
}

func newKeyLike(i int) string { return fmt.Sprintf("{apiKey:%x}:charge:%d", i*7919, i) }

func TestParseRedirect(t *testing.T) {
	tests := []struct {
		err     error
		kind    redirectKind
		address string
	}{
		{redis.Error("MOVED 3999 127.0.0.1:6381"), movedSlot, "127.0.0.1:6381"},
		{redis.Error("ASK 3999 redis-1.example:6381"), askedSlot, "redis-1.example:6381"},
		{redis.Error("MOVED 3999 :6381"), movedSlot, "[fd00::1]:6381"},
		{redis.Error("MOVED 3999 ?:6381"), movedSlot, "[fd00::1]:6381"},
		{redis.Error("MOVED 3999 ::1:6381"), movedSlot, "[::1]:6381"},
		{redis.Error("MOVED 3999 h:0"), movedSlot, "h:7000"},
		{redis.Error("TRYAGAIN Multiple keys request during rehashing of slot"), notNow, ""},
		{redis.Error("CLUSTERDOWN Hash slot not served"), notNow, ""},
		{redis.Error("READONLY You can't write against a read only replica."), notNow, ""},
		{unsentError{errConnClosed}, notNow, ""},
		{redis.Error("MOVED"), noRedirect, ""},
		{redis.Error("MOVED 1 2"), noRedirect, ""},
		{redis.Error("OOM command not allowed when used memory > 'maxmemory'."), noRedirect, ""},
		{errNoReply, noRedirect, ""},
		{errTooManyPending, noRedirect, ""},
		{errTooFewReplicas, noRedirect, ""},
	}
	for _, test := range tests {
		kind, address := parseRedirect(test.err, "[fd00::1]:7000")
		if kind != test.kind || address != test.address {
			t.Errorf("%v: got %d %q, want %d %q", test.err, kind, address, test.kind, test.address)
		}
	}
}

func TestParseSlots(t *testing.T) {
	node := func(host any, port int) []any { return []any{host, int64(port), []byte("id"), []any{}} }
	got, err := parseSlots([]any{
		[]any{int64(0), int64(99), node([]byte("10.0.0.1"), 7000), node([]byte("10.0.0.2"), 7001)},
		[]any{int64(100), int64(100), node(nil, 7002)},
		[]any{int64(101), int64(102), node([]byte(""), 0)},
		[]any{int64(103), int64(16383), node([]byte("?"), 7004)},
	}, "seed:6379")
	want := slotMap{
		ranges: []slotRange{
			{0, 99, "10.0.0.1:7000"}, {100, 100, "seed:7002"}, {101, 102, "seed:6379"}, {103, 16383, "seed:7004"},
		},
		replicas: []string{"10.0.0.2:7001"}, covered: slotCount,
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	for _, bad := range []any{
		"x", []any{}, []any{int64(0), int64(1)}, []any{int64(2), int64(1), node(nil, 1)},
		[]any{int64(0), int64(slotCount), node(nil, 1)}, []any{int64(0), int64(1), []any{nil}},
	} {
		if m, err := parseSlots([]any{bad}, "seed:6379"); err == nil {
			t.Errorf("%v: got %+v, want an error", bad, m)
		}
	}
}
