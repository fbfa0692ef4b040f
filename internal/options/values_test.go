package options

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

// value returns what parse makes of a text, or the text of its error.
func value[T any](parse func(string) (T, error), text string) string {
	var dst T
	if err := Into(&dst, parse)(text); err != nil {
		return err.Error()
	}
	return fmt.Sprint(dst)
}

func TestValues(t *testing.T) {
	number, duration := Int(-1, 10), Duration(time.Second, time.Hour)
	const noNumber, noDuration = " is not a whole number from -1 to 10", " is not a duration from 1s to 1h0m0s, such as 30s"
	const noPart, noURL = " is not a number above 0 and at most 1", "is not an absolute http or https URL"
	for _, test := range []struct{ got, want string }{
		{value(Text, " a "), " a "},
		{value(Bool, ""), "false"}, {value(Bool, "1"), "true"}, {value(Bool, "true"), "true"}, {value(Bool, "F"), "false"},
		{value(Bool, "yes"), `"yes" is neither true nor false`}, {value(Bool, " "), `" " is neither true nor false`},
		{value(number, "-1"), "-1"}, {value(number, "10"), "10"}, {value(number, "-2"), `"-2"` + noNumber},
		{value(number, "11"), `"11"` + noNumber}, {value(number, "1.5"), `"1.5"` + noNumber}, {value(number, ""), `""` + noNumber},
		{value(duration, "1s"), "1s"}, {value(duration, "1h"), "1h0m0s"}, {value(duration, "999ms"), `"999ms"` + noDuration},
		{value(duration, "61m"), `"61m"` + noDuration}, {value(duration, "5"), `"5"` + noDuration},
		{value(Part, "0.5"), "0.5"}, {value(Part, "1"), "1"}, {value(Part, "0"), `"0"` + noPart}, {value(Part, "1.01"), `"1.01"` + noPart},
		{value(Part, "NaN"), `"NaN"` + noPart}, {value(Part, "half"), `"half"` + noPart},
		{value(Address, "h:80"), "h:80"}, {value(Address, ":0"), ":0"}, {value(Address, "[::1]:65535"), "[::1]:65535"},
		{value(Address, "80"), `"80" is not a host:port or :port`}, {value(Address, ":http"), `"http" is not a port from 0 to 65535`},
		{value(Address, "h:65536"), `"65536" is not a port from 0 to 65535`},
		{value(HTTPURL, "http://h/g"), "http://h/g"}, {value(HTTPURL, "https://u:hunter2@h?x"), "https://u:hunter2@h?x"},
		{value(HTTPURL, "/certs"), noURL}, {value(HTTPURL, "file:///hunter2"), noURL}, {value(HTTPURL, "https://"), noURL},
		{value(HTTPURL, "https://h#x"), noURL}, {value(HTTPURL, "https://u:hunter2@h:x"), noURL}, {value(HTTPURL, ""), noURL},
	} {
		if test.got != test.want {
			t.Errorf("got %s, want %s", test.got, test.want)
		}
	}
}

// IPv4 networks count as such in whatever way they are written, since clients' addresses are compared as IPv4.
func TestPrefixes(t *testing.T) {
	for in, want := range map[string]string{
		"": "[]", "10.0.0.0/8": "[10.0.0.0/8]", "::ffff:10.0.0.0/104": "[10.0.0.0/8]", "::ffff:0:0/96, ::1/128": "[0.0.0.0/0 ::1/128]",
		"::/0": "[::/0]", "::ffff:0:0/90": "[::ffff:0.0.0.0/90]", "::ffff:1.2.3.4/128,fd00::/8": "[1.2.3.4/32 fd00::/8]",
	} {
		if got, err := Prefixes(in); err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: got %v, %v, want %s", in, got, err, want)
		}
	}
	_, err := Prefixes("10.0.0.1,a, ::1/128,")
	const want = `"10.0.0.1" is not a CIDR such as 10.0.0.0/8; "a" is not a CIDR such as 10.0.0.0/8; "" is not a CIDR such as 10.0.0.0/8`
	if wrong, ok := errors.AsType[Errors](err); !ok || len(wrong) != 3 || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
