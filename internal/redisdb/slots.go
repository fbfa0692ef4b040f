package redisdb

import (
	"errors"
	"net"
	"slices"
	"strconv"
	"strings"

	"github.com/gomodule/redigo/redis"
)

// slotCount is how many slots the keys of a Redis Cluster are divided into
// (https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/).
const slotCount = 16384

// Slot returns the slot of a key in a Redis Cluster, from 0 to 16383: CRC-16/XMODEM of the key, or of what is between
// its first { and the next }, if that is not empty.
func Slot(key string) int {
	if begin := strings.IndexByte(key, '{'); begin >= 0 {
		if n := strings.IndexByte(key[begin+1:], '}'); n > 0 {
			key = key[begin+1 : begin+1+n]
		}
	}
	return int(crc16(0, key) % slotCount)
}

// SlotDigits returns four lower-case hexadecimal digits that, appended to prefix, give a key in slot. It tries the
// numbers upwards from first, and after ffff from 0000 on. ok is false if none fits, as for one slot in five. prefix
// must not contain a brace.
func SlotDigits(prefix string, slot int, first uint16) (digits string, ok bool) {
	start := crc16(0, prefix)
	for i := range 1 << 16 {
		text := hexOf(first + uint16(i))
		if int(crc4(start, text[0], text[1], text[2], text[3])%slotCount) == slot {
			return string(text[:]), true
		}
	}
	return "", false
}

// hexOf returns n as four lower-case hexadecimal digits.
func hexOf(n uint16) [4]byte {
	const digits = "0123456789abcdef"
	return [4]byte{digits[n>>12], digits[n>>8&15], digits[n>>4&15], digits[n&15]}
}

// crcTables[i] has the remainder of each byte that i bytes follow, so that four bytes are taken in one step.
var crcTables = func() (tables [4][256]uint16) {
	for i := range 256 {
		crc := uint16(i) << 8
		for j := range tables {
			for range 8 {
				carry := crc >> 15
				crc = crc<<1 ^ carry*0x1021
			}
			tables[j][i] = crc
		}
	}
	return tables
}()

// crc16 continues a checksum: it returns that of a text with the checksum crc, followed by s.
func crc16(crc uint16, s string) uint16 {
	for len(s) >= 4 {
		crc = crc4(crc, s[0], s[1], s[2], s[3])
		s = s[4:]
	}
	for i := range len(s) {
		crc = crc<<8 ^ crcTables[0][byte(crc>>8)^s[i]]
	}
	return crc
}

// crc4 does what crc16 does, for four bytes.
func crc4(crc uint16, a, b, c, d byte) uint16 {
	t := &crcTables
	crc ^= uint16(a)<<8 | uint16(b)
	return t[3][crc>>8] ^ t[2][crc&0xff] ^ t[1][c] ^ t[0][d]
}

// slotMap is what a node of a cluster says about who has which slots.
type slotMap struct {
	ranges   []slotRange
	replicas []string
	covered  int // slots
}

type slotRange struct {
	first, last int
	master      string
}

// parseSlots parses the reply to CLUSTER SLOTS of the server at from.
func parseSlots(ranges []any, from string) (m slotMap, err error) {
	for _, r := range ranges {
		fields, err := redis.Values(r, nil)
		if err != nil || len(fields) < 3 {
			return m, errBadSlots
		}
		first, err1 := redis.Int(fields[0], nil)
		last, err2 := redis.Int(fields[1], nil)
		if err1 != nil || err2 != nil || first < 0 || last < first || last >= slotCount {
			return m, errBadSlots
		}
		for i, field := range fields[2:] {
			address, err := parseSlotNode(field, from)
			if err != nil {
				return m, err
			}
			if i > 0 {
				m.replicas = append(m.replicas, address)
				continue
			}
			m.ranges = append(m.ranges, slotRange{first, last, address})
			m.covered += last - first + 1
		}
	}
	return m, nil
}

// parseSlotNode returns the address of a node in the reply of CLUSTER SLOTS of the server at from.
func parseSlotNode(field any, from string) (string, error) {
	node, err := redis.Values(field, nil)
	if err != nil || len(node) < 2 {
		return "", errBadSlots
	}
	host, err := redis.String(node[0], nil)
	if err != nil && !errors.Is(err, redis.ErrNil) { // nil is a host that the cluster does not know
		return "", errBadSlots
	}
	port, err := redis.Int(node[1], nil)
	if err != nil {
		return "", errBadSlots
	}
	return announcedAddress(host, strconv.Itoa(port), from), nil
}

var errBadSlots = errors.New("the reply of CLUSTER SLOTS is malformed")

// redirectKind is what an error says about where, or when, to send a command that was not executed.
type redirectKind int

const (
	movedSlot  redirectKind = iota // another server has the slot
	askedSlot                      // another server is getting the slot, and has the key or would create it
	notNow                         // the same may succeed a little later, here or on a server that takes over
	noRedirect                     // nothing
)

var redirectNames = [...]string{movedSlot: "moved", askedSlot: "ask", notNow: "retry"}

// parseRedirect returns what err says, and the address that it names. from is that of the server it came from.
func parseRedirect(err error, from string) (kind redirectKind, address string) {
	if _, unsent := errors.AsType[unsentError](err); unsent {
		return notNow, ""
	}
	reply, ok := errors.AsType[redis.Error](err)
	if !ok {
		return noRedirect, ""
	}
	fields := strings.Fields(string(reply))
	switch {
	case len(fields) == 3 && (fields[0] == "MOVED" || fields[0] == "ASK"):
		colon := strings.LastIndexByte(fields[2], ':')
		if colon < 0 {
			return noRedirect, ""
		}
		if fields[0] == "ASK" {
			kind = askedSlot
		}
		return kind, announcedAddress(strings.Trim(fields[2][:colon], "[]"), fields[2][colon+1:], from)
	case len(fields) > 0 && slices.Contains([]string{"TRYAGAIN", "CLUSTERDOWN", "LOADING", "MASTERDOWN"}, fields[0]),
		strings.Contains(string(reply), "READONLY"):
		return notNow, ""
	}
	return noRedirect, ""
}

// announcedAddress returns the address that the server at from announces for another one. A host that is missing or
// that the cluster does not know is from's own, and so is a missing port.
func announcedAddress(host, port, from string) string {
	fromHost, fromPort, _ := net.SplitHostPort(from)
	if host == "" || host == "?" {
		host = fromHost
	}
	if port == "" || port == "0" {
		port = fromPort
	}
	return net.JoinHostPort(host, port)
}
