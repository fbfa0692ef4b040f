package websocket

import (
	"crypto/sha1"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
)

const version = "13" // of the protocol: the only one

// acceptKey returns what a server answers to the key of a client (RFC 6455, section 4.2.2).
func acceptKey(key string) string {
	sum := sha1.Sum([]byte(key + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
	return base64.StdEncoding.EncodeToString(sum[:])
}

// list returns the elements of a header that is a comma-separated list. Empty elements do not count.
func list(h http.Header, name string) (elements []string) {
	for _, line := range h.Values(name) {
		for element := range strings.SplitSeq(line, ",") {
			if element = strings.Trim(element, " \t"); element != "" {
				elements = append(elements, element)
			}
		}
	}
	return elements
}

// hasToken reports whether a token is in a header's list, in upper or lower case.
func hasToken(h http.Header, name, token string) bool {
	return slices.ContainsFunc(list(h, name), func(s string) bool { return strings.EqualFold(s, token) })
}

// isUpgrade reports whether a header asks for the protocol, or agrees to it.
func isUpgrade(h http.Header) bool {
	return hasToken(h, "Connection", "Upgrade") && hasToken(h, "Upgrade", "websocket")
}

// isToken reports whether s is a token (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return r <= ' ' || r >= 0x7f || strings.ContainsRune("\"(),/:;<=>?@[\\]{}", r)
	})
}

// only returns the value of a header that is there once.
func only(h http.Header, name string) (value string, ok bool) {
	if values := h.Values(name); len(values) == 1 {
		return strings.Trim(values[0], " \t"), true
	}
	return "", false
}

// upgraded is a connection of which net/http has read more than a header. reader has the rest, and then what comes.
type upgraded struct {
	net.Conn
	reader io.Reader
}

func (u *upgraded) Read(p []byte) (int, error) { return u.reader.Read(p) }

func (u *upgraded) CloseWrite() error {
	if half, ok := u.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return http.ErrNotSupported
}
