package stripe

import (
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

const (
	testSecret = "whsec_5WbX5kEWLlfzsGNjH64I8lOOqUB6e8FH"
	signedAt   = 1795827929
	// testMAC is the v1 of testBody with testSecret at signedAt, as npm stripe makes it.
	testMAC = "fb785fe58b1bd83345163f6e31667d19ca98c63bf867302ea7670b472469fc1a"
)

var testBody = []byte("{\"id\":\"evt_1\",\n \"ä\":1}")

func signatureHeader(values ...string) http.Header { return http.Header{"Stripe-Signature": values} }

// Only a header with one time, which is current, and a v1 is read. Errors quote nothing of it.
func TestReadSignature(t *testing.T) {
	const v1 = ",v1=" + testMAC
	for _, test := range []struct {
		headers []string
		want    string // "" if it is read
	}{
		{[]string{"t=1795827929" + v1}, ""},
		{[]string{"v1=x,t=1795827929"}, ""},
		{[]string{"t=1795827929,v0=x,v1=x,v1=y,v2=z,unknown,=,,"}, ""},
		{nil, "it is absent"},
		{[]string{}, "it is absent"},
		{[]string{""}, "it has no time"},
		{[]string{"t=1795827929" + v1, "t=1795827929" + v1}, "it is repeated"},
		{[]string{"t=1795827929" + v1 + strings.Repeat(",v1=x", 1000)}, "it is too long"},
		{[]string{"t=1795827929,t=1795827929" + v1}, "it has two times"},
		{[]string{"t=1795827929,t=" + v1}, "it has two times"},
		{[]string{v1[1:]}, "it has no time"},
		{[]string{"t=" + v1}, "it has no time"},
		{[]string{"t" + v1}, "it has no time"},
		{[]string{"T=1795827929" + v1}, "it has no time"},
		{[]string{"t=now" + v1}, "it has no time"},
		{[]string{"t=1795827929.0" + v1}, "it has no time"},
		{[]string{"t=1795827929x" + v1}, "it has no time"},
		{[]string{"t=+1795827929" + v1}, "it has no time"},
		{[]string{"t=01795827929" + v1}, "it has no time"},
		{[]string{"t= 1795827929" + v1}, "it has no time"},
		{[]string{"t=-1" + v1}, "it has no time"},
		{[]string{"t=99999999999999999999" + v1}, "it has no time"},
		{[]string{"t=1795827929"}, "it has no v1"},
		{[]string{"t=1795827929,v0=" + testMAC}, "it has no v1"},
		{[]string{"t=1795827929, v1=" + testMAC}, "it has no v1"},
		{[]string{"t=0" + v1}, "it is more than 300 s from now"},
		{[]string{"t=9223372036854775807" + v1}, "it is more than 300 s from now"},
		{[]string{"t=1795827629" + v1}, ""},
		{[]string{"t=1795827628" + v1}, "it is more than 300 s from now"},
		{[]string{"t=1795828229" + v1}, ""},
		{[]string{"t=1795828230" + v1}, "it is more than 300 s from now"},
	} {
		s, err := ReadSignature(signatureHeader(test.headers...), time.Unix(signedAt, 999e6))
		switch {
		case test.want == "" && (err != nil || s == nil):
			t.Errorf("%.100q: %v", test.headers, err)
		case test.want != "" && (!errors.Is(err, ErrSignature) || err.Error() != "invalid Stripe-Signature: "+test.want || s != nil):
			t.Errorf("%.100q: got %v, %v, want %s", test.headers, s, err, test.want)
		}
	}
}

// Only the exact body, time and whole secret make a signature, in lower case.
func TestVerify(t *testing.T) {
	const at = "t=1795827929,v1="
	wrong := strings.Repeat("0", len(testMAC))
	for _, test := range []struct {
		name, header, body string
		secrets            []string
		want               bool
	}{
		{"one of each", at + testMAC, string(testBody), []string{testSecret}, true},
		{"another secret before", at + testMAC, string(testBody), []string{"whsec_other", testSecret}, true},
		{"another secret after", at + testMAC, string(testBody), []string{testSecret, "whsec_other"}, true},
		{"another v1 before", at + wrong + ",v1=" + testMAC, string(testBody), []string{testSecret}, true},
		{"another v1 after", at + testMAC + ",v1=" + wrong, string(testBody), []string{testSecret}, true},
		{"two of each", at + wrong + ",v1=" + testMAC, string(testBody), []string{"whsec_other", testSecret}, true},
		{"among others", at + wrong + ",v0=" + wrong + ",v1=" + testMAC, string(testBody), []string{"", "a", testSecret}, true},
		{"no secret", at + testMAC, string(testBody), nil, false},
		{"an empty secret", at + signatureOf("1795827929", testBody, ""), string(testBody), []string{""}, false},
		{"other secrets", at + testMAC, string(testBody), []string{"whsec_other", ""}, false},
		{"the secret without whsec_", at + testMAC, string(testBody), []string{testSecret[6:]}, false},
		{"another body", at + testMAC, string(testBody) + "\n", []string{testSecret}, false},
		{"no body", at + testMAC, "", []string{testSecret}, false},
		{"another time", "t=1795827930,v1=" + testMAC, string(testBody), []string{testSecret}, false},
		{"in v0", at + wrong + ",v0=" + testMAC, string(testBody), []string{testSecret}, false},
		{"upper case", at + strings.ToUpper(testMAC), string(testBody), []string{testSecret}, false},
		{"too short", at + testMAC[:63], string(testBody), []string{testSecret}, false},
		{"too long", at + testMAC + "0", string(testBody), []string{testSecret}, false},
		{"empty", at, string(testBody), []string{testSecret}, false},
		{"the time and body moved", "t=17958279,v1=" + testMAC, "29." + string(testBody), []string{testSecret}, false},
	} {
		seconds, _ := strconv.ParseInt(test.header[2:strings.IndexByte(test.header, ',')], 10, 64)
		s, err := ReadSignature(signatureHeader(test.header), time.Unix(seconds, 0))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
		} else if got := s.Verify([]byte(test.body), test.secrets...); got != test.want {
			t.Errorf("%s: got %v, want %v", test.name, got, test.want)
		}
	}
}

// A header that is read has a current time in plain decimal and a v1, and nobody gets through without the secret.
func FuzzReadSignature(f *testing.F) {
	for _, header := range []string{
		"t=1795827929,v1=" + testMAC, "t=1795827629,v1=x,v0=y", "t=1,t=2,v1=x", "v1=,t=1795828229", "t=+1795827929,v1=x", "", ",=,",
	} {
		f.Add(header)
	}
	now := time.Unix(signedAt, 0)
	f.Fuzz(func(t *testing.T, header string) {
		s, err := ReadSignature(signatureHeader(header), now)
		if err != nil {
			if !errors.Is(err, ErrSignature) || s != nil {
				t.Errorf("%q: %v, %v", header, s, err)
			}
			return
		}
		seconds, err := strconv.Atoi(s.time)
		if err != nil || strconv.Itoa(seconds) != s.time || seconds < signedAt-300 || seconds > signedAt+300 || len(s.macs) == 0 {
			t.Errorf("%q: got %+v, %v", header, *s, err)
		}
		if s.Verify(testBody, "whsec_fuzz", "") {
			t.Errorf("%q has signed it", header)
		}
		if signed := header + ",v1=" + signatureOf(s.time, testBody, "whsec_fuzz"); len(signed) <= maxSignatureBytes {
			if s, err := ReadSignature(signatureHeader(signed), now); err != nil || !s.Verify(testBody, "", "whsec_fuzz") {
				t.Errorf("%q: %v", signed, err)
			}
		}
	})
}
