package options

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// Into returns the function, for an Option, that sets dst to what parse returns.
func Into[T any](dst *T, parse func(value string) (T, error)) func(value string) error {
	return func(value string) (err error) {
		*dst, err = parse(value)
		return err
	}
}

// Text accepts any value.
func Text(value string) (string, error) { return value, nil }

// Bool accepts what strconv.ParseBool does; "" is false.
func Bool(value string) (bool, error) {
	b, err := strconv.ParseBool(value)
	if err != nil && value != "" {
		return false, fmt.Errorf("%q is neither true nor false", value)
	}
	return b, nil
}

// Int returns the function that accepts a whole number from lo to hi.
func Int(lo, hi int64) func(value string) (int64, error) {
	return func(value string) (int64, error) {
		n, err := strconv.ParseInt(value, 10, 64)
		if err != nil || n < lo || n > hi {
			return 0, fmt.Errorf("%q is not a whole number from %d to %d", value, lo, hi)
		}
		return n, nil
	}
}

// Duration returns the function that accepts what time.ParseDuration does, from lo to hi.
func Duration(lo, hi time.Duration) func(value string) (time.Duration, error) {
	return func(value string) (time.Duration, error) {
		d, err := time.ParseDuration(value)
		if err != nil || d < lo || d > hi {
			return 0, fmt.Errorf("%q is not a duration from %s to %s, such as 30s", value, lo, hi)
		}
		return d, nil
	}
}

// Part accepts a number above 0 and at most 1.
func Part(value string) (float64, error) {
	part, err := strconv.ParseFloat(value, 64)
	if err != nil || !(part > 0 && part <= 1) {
		return 0, fmt.Errorf("%q is not a number above 0 and at most 1", value)
	}
	return part, nil
}

// Address accepts host:port and :port. The port is a number.
func Address(value string) (string, error) {
	_, port, err := net.SplitHostPort(value)
	if err != nil {
		return "", fmt.Errorf("%q is not a host:port or :port", value)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return "", fmt.Errorf("%q is not a port from 0 to 65535", port)
	}
	return value, nil
}

// HTTPURL accepts an absolute http or https URL without a fragment. Its error does not quote the URL, which may hold a
// password.
func HTTPURL(value string) (string, error) {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || u.Fragment != "" {
		return "", errors.New("is not an absolute http or https URL")
	}
	return value, nil
}

// Prefixes accepts CIDRs separated by commas. IPv4 networks written as IPv6 become IPv4, so that IPv4 addresses are in
// them. The error is an Errors, with a sentence for each that is not a CIDR.
func Prefixes(value string) (prefixes []netip.Prefix, err error) {
	if value == "" {
		return nil, nil
	}
	var wrong Errors
	for cidr := range strings.SplitSeq(value, ",") {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(cidr))
		if err != nil {
			wrong = append(wrong, fmt.Sprintf("%q is not a CIDR such as 10.0.0.0/8", strings.TrimSpace(cidr)))
		}
		if prefix.Addr().Is4In6() && prefix.Bits() >= 96 {
			prefix = netip.PrefixFrom(prefix.Addr().Unmap(), prefix.Bits()-96)
		}
		prefixes = append(prefixes, prefix)
	}
	if len(wrong) > 0 {
		return nil, wrong
	}
	return prefixes, nil
}
