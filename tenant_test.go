package main

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// A config that breaks a rule is refused; the error names the member by its path and shows no value.
func TestInvalidConfigs(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 10)
	const (
		amount   = " must be a whole number ≥ 0"
		large    = " must be a whole number from 0 to 9007199254740991"
		rate     = " must be a whole number from 0 to 100000"
		url      = "providers.text.endpoints.b.url must be an absolute http or https URL"
		endpoint = "providers.text.default must name an endpoint"
		fee      = "caching.fee_percentage must be a number from 0 to 100"
	)
	for _, test := range []struct{ config, want string }{
		{`7`, "it must be an object"},
		{`{"user_groups":7}`, "user_groups must be an object"},
		{`{"user_groups":{"anonymous":"S3"}}`, "user_groups.anonymous must be an object"},
		{`{"user_groups":{"anonymous":{"tokens":-1}}}`, "user_groups.anonymous.tokens" + amount},
		{`{"user_groups":{"anonymous":{"tokens":"S3"}}}`, "user_groups.anonymous.tokens" + amount},
		{`{"user_groups":{"anonymous":{"tokens":1.5}}}`, "user_groups.anonymous.tokens" + amount},
		{`{"user_groups":{"anonymous":{"tokens":null}}}`, "user_groups.anonymous.tokens" + amount},
		{`{"user_groups":{"anonymous":{"tokens":9007199254740992}}}`, "user_groups.anonymous.tokens" + large},
		{`{"user_groups":{"a.b":{"tokens":-1}}}`, `user_groups["a.b"].tokens` + amount},
		{`{"user_groups":{"a":{"rate_limit":-1,"rate_limit_window":1}}}`, "user_groups.a.rate_limit" + rate},
		{`{"user_groups":{"a":{"rate_limit":100001,"rate_limit_window":1}}}`, "user_groups.a.rate_limit" + rate},
		{`{"user_groups":{"a":{"rate_limit":1,"rate_limit_window":0}}}`, "user_groups.a.rate_limit_window must be a whole number ≥ 1"},
		{`{"user_groups":{"a":{"rate_limit":1}}}`, "user_groups.a.rate_limit_window is missing beside rate_limit"},
		{`{"user_groups":{"a":{"tokens":1,"tokens":2}}}`, "user_groups.a.tokens is duplicated"},
		{`{"user_groups":{"a":{},"\u0061":{}}}`, "user_groups.a is duplicated"},
		{`{"user_groups":{},"user_groups":{}}`, "user_groups is duplicated"},
		{`{"auth":[]}`, "auth must be an object"},
		{`{"auth":{"stripe":"S3"}}`, "auth.stripe must be an object"},
		{`{"auth":{"stripe":{"api_key":7}}}`, "auth.stripe.api_key must be a string"},
		{`{"auth":{"google_oauth":{"client_secret":{}}}}`, "auth.google_oauth.client_secret must be a string"},
		{`{"providers":[]}`, "providers must be an object"},
		{`{"providers":{"text":{"default":7}}}`, "providers.text.default must be a string"},
		{`{"providers":{"text":{"default":"S3"}}}`, endpoint},
		{`{"providers":{"text":{"default":"S3","endpoints":{"b":{}}}}}`, endpoint},
		{`{"providers":{"text":{"endpoints":{"b":7}}}}`, "providers.text.endpoints.b must be an object"},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"S3"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"/S3"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"ftp://S3"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":"https://"}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"url":7}}}}}`, url},
		{`{"providers":{"text":{"endpoints":{"b":{"api_key":7}}}}}`, "providers.text.endpoints.b.api_key must be a string"},
		{`{"auth":{"x":{"client_id":7}}}`, "auth.x.client_id must be a string"},
		{`{"providers":{"text":7}}`, "providers.text must be an object"},
		{`{"providers":{"text":{"endpoints":7}}}`, "providers.text.endpoints must be an object"},
		{`{"providers":{"text":{"endpoints":null}}}`, "providers.text.endpoints must be an object"},
		{`{"providers":{"text":{"endpoints":{"b":{"default_model":7}}}}}`, "providers.text.endpoints.b.default_model must be a string"},
		{`{"providers":{"text":{"endpoints":{"b":{"model":null}}}}}`, "providers.text.endpoints.b.model must be a string"},
		{`{"providers":{"text":{"endpoints":{"b":{"voice":7}}}}}`, "providers.text.endpoints.b.voice must be a string"},
		{`{"providers":{"text":{"endpoints":{"b":{"encoding":7}}}}}`, "providers.text.endpoints.b.encoding must be a string"},
		{`{"providers":{"text":{"endpoints":{"b":{"sampleRate":"S3"}}}}}`, "providers.text.endpoints.b.sampleRate must be a number"},
		{`{"user_groups":{"\ud800":{"tokens":1}}}`, "user_groups[\"\ufffd\"] must not have half of a surrogate pair"},
		{`{"caching":7}`, "caching must be an object"},
		{`{"caching":{"enabled":1}}`, "caching.enabled must be true or false"},
		{`{"caching":{"text_ttl":-1}}`, "caching.text_ttl" + amount},
		{`{"caching":{"transcription_ttl":"S3"}}`, "caching.transcription_ttl" + amount},
		{`{"caching":{"fee_percentage":100.5}}`, fee},
		{`{"caching":{"fee_percentage":-1}}`, fee},
		{`{"caching":{"fee_percentage":"S3"}}`, fee},
	} {
		t.Run(test.config, func(t *testing.T) {
			got := s.putConfig(t, id, test.config)
			got.wantError(t, 400, "Invalid config: "+test.want)
			if strings.Contains(got.body+s.log.String(), "S3") {
				t.Errorf("a value is shown: %s", got.body)
			}
		})
	}
	t.Run("nothing has changed", func(t *testing.T) {
		s.admin(t, "GET", "/"+id+"/admin/config", "").
			want(t, 200, `{"config":{"user_groups":{"anonymous":{"tokens":10},"pro":{"tokens":5000}}}}`)
	})
	for _, test := range []struct{ name, config string }{
		{"empty", `{}`},
		{"a fraction of a percent", `{"caching":{"fee_percentage":0.5,"text_ttl":0}}`},
		{"no requests, and no limit", `{"user_groups":{"a":{"rate_limit":0,"rate_limit_window":1},"b":{"rate_limit_window":1}}}`},
		{"an address", `{"providers":{"text":{"endpoints":{"b":{"url":"http://[::1]:80/x?y"}},"default":"b"}}}`},
		{"the seed", string(seedConfig)},
	} {
		t.Run("accepted: "+test.name, func(t *testing.T) {
			s.putConfig(t, id, test.config).want(t, 200, "")
		})
	}
}

// If several members are wrong, all of them are named: the first in error, all in errors, none with its value.
func TestAllProblems(t *testing.T) {
	s := newService(t)
	id := newTenant(t, 1)
	t.Run("several", func(t *testing.T) {
		got := s.putConfig(t, id, `{"caching":{"enabled":"S3","text_ttl":-1},"user_groups":{"a":{"tokens":"S3","rate_limit":1}}}`)
		got.want(t, 400, `{"error":"Invalid config: caching.enabled must be true or false","errors":[`+strings.Join([]string{
			`"Invalid config: caching.enabled must be true or false"`,
			`"Invalid config: caching.text_ttl must be a whole number ≥ 0"`,
			`"Invalid config: user_groups.a.tokens must be a whole number ≥ 0"`,
			`"Invalid config: user_groups.a.rate_limit_window is missing beside rate_limit"`,
		}, ",")+`]}`)
	})
	t.Run("one is not listed", func(t *testing.T) {
		if got := s.putConfig(t, id, `{"caching":7}`); got.field(t, "errors") != nil {
			t.Errorf("got %s", got.body)
		}
	})
	t.Run("more than are listed", func(t *testing.T) {
		var many []string
		for i := range 5000 {
			many = append(many, fmt.Sprintf(`"%s%d":7`, strings.Repeat(`\u0000`, 20), i))
		}
		got := s.putConfig(t, id, `{"user_groups":{`+strings.Join(many, ",")+`}}`)
		got.want(t, 400, "")
		if !strings.Contains(got.body, `"Invalid config: 4900 more members are wrong"]`) {
			t.Error("the response does not say that there are more problems")
		}
		if n := len(got.field(t, "errors").([]any)); n != maxProblems+1 || len(got.body) > 100_000 {
			t.Errorf("%d of 5000 problems are listed in %d bytes", n, len(got.body))
		}
	})
	t.Run("a long name", func(t *testing.T) {
		got := s.admin(t, "POST", "/"+id+"/admin/keys", `{"`+strings.Repeat(`\u0000`, 100_000)+`":1}`)
		got.want(t, 400, "")
		if len(got.body) > 1000 {
			t.Errorf("an unknown member makes a response of %d bytes", len(got.body))
		}
	})
}

func FuzzTenantID(f *testing.F) {
	for _, id := range []string{"abc", "a_-9", "", "_a", "a:b", "a\x00", "é", strings.Repeat("a", 65)} {
		f.Add(id)
	}
	pattern := regexp.MustCompile(`\A[A-Za-z0-9][A-Za-z0-9_-]{0,63}\z`)
	f.Fuzz(func(t *testing.T, id string) {
		if got, want := validTenantID(id), pattern.MatchString(id); got != want {
			t.Errorf("%q: got %v, want %v", id, got, want)
		}
	})
}
