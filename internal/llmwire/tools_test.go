package llmwire

import (
	"fmt"
	"strings"
	"testing"
)

// A tool or a part of a type that is not known counts as one that the provider runs, wherever it stands.
func TestServerToolPlaces(t *testing.T) {
	const invented = `{"type":"invented_20270101","name":"x"}`
	for _, place := range []string{
		`{"tools":[%s]}`,
		`{"tools":[{"type":"custom","tools":[{"type":"custom"},%s]}]}`, // as in a namespace
		`{"messages":[{"content":[%s]}]}`,
		`{"messages":[{"content":%s}]}`,
		`{"messages":[%s]}`,
		`{"messages":[{"content":[{"type":"tool_result","content":[{"type":"text"},%s]}]}]}`,
		`{"messages":[{"content":[{"type":"tool_result","content":%s}]}]}`,
		`{"messages":[{"content":[{"type":"web_fetch_tool_result","content":{"type":"web_fetch_result","content":%s}}]}]}`,
		`{"messages":[{"content":[{"type":"document","source":{"type":"content","content":[%s]}}]}]}`,
		`{"messages":[{"content":[{"type":"search_result","source":"x","content":[%s]}]}]}`,
		`{"messages":[{"content":[{"type":"tool_addition","tool":%s}]}]}`,
		`{"messages":[{"content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":%s}}]}]}`,
		`{"messages":[{"content":[{"type":"tool_removal","tool":%s}]}]}`,
		`{"messages":[{"content":[{"type":"compaction","tool_changes":[%s]}]}]}`,
		`{"messages":[{"content":[{"type":"compaction","tool_changes":[{"type":"tool_addition","tool":` +
			`{"type":"tool_definition","definition":%s}}]}]}]}`,
		`{"messages":[{"content":[{"type":"text","tools":[%s]}]}]}`,
		`{"messages":[{"tools":[%s]}]}`,
		`{"messages":[{"images":[%s]}]}`,
		`{"system":[%s]}`,
		`{"system":[{"type":"text","content":[%s]}]}`,
		`{"input":[%s]}`,
		`{"input":[{"content":[%s]}]}`,
		`{"input":[{"tools":[%s]}]}`,
		`{"input":[{"role":"user","content":[{"type":"text","tools":[%s]}]}]}`,
	} {
		for _, format := range textFormats {
			body := fmt.Sprintf(place, invented)
			r, err := ReadRequest(Format(format), []byte(body))
			if err != nil {
				t.Fatalf("%s: %v", body, err)
			}
			if r.ServerTool != "invented_20270101" {
				t.Errorf("format %d, %s: the server tool is %q", format, body, r.ServerTool)
			}
			if want := strings.HasPrefix(place, `{"tools"`); r.CanDropTools != want {
				t.Errorf("format %d, %s: can be dropped: %v, want %v", format, body, r.CanDropTools, want)
			}
		}
	}
	for _, body := range []string{
		`{"container":{"skills":[{"type":"anthropic","skill_id":"pptx"}]}}`, `{"container":{"skills":[` + invented + `]}}`,
		`{"mcp_servers":[{"url":"https://example.com"}]}`,
		`{"tools":["web_search"]}`, `{"tools":[1]}`, `{"tools":[{"type":1}]}`, `{"tools":[{"type":{}}]}`, `{"tools":[{"type":""}]}`,
		`{"tools":[{"type":"custom","type":"web"}]}`, `{"messages":[{"content":[{"type":1}]}]}`,
		`{"messages":[{"content":[{"type":"container_upload","file_id":"file_1"}]}]}`,
		`{"messages":[{"content":[{"type":"tool_addition","tool":{"type":"mcp_toolset_reference"}}]}]}`,
		`{"tools":[{"type":"tool_definition"}]}`, `{"tools":[{"type":"bash_"}]}`, `{"tools":[{"type":"my_bash_1"}]}`,
		`{"tools":[{"type":"Function"}]}`,
		`{"tools":[{"googleSearch":{}}]}`, `{"tools":[{"type":"function","function":{"name":"f"},"url_context":{}}]}`,
		`{"messages":[{"content":[{"type":"tool_addition","tool":{"code_execution":{}}}]}]}`,
	} {
		for _, format := range textFormats {
			if r, err := ReadRequest(Format(format), []byte(body)); err != nil || r.ServerTool == "" {
				t.Errorf("%s: nothing is run by the provider, %v", body, err)
			}
		}
	}
}

func TestClientTools(t *testing.T) {
	for _, test := range []struct {
		body        string
		claude      bool // only Anthropic's format knows the tool
		need, least int64
	}{
		{`{"tools":[{"type":"function","function":{"name":"f"}}]}`, false, 600, 0},
		{`{"tools":[{"type":"custom"},{"name":"f","input_schema":{"type":"object"}},{"type":null}]}`, false, 600, 0},
		{`{"tools":[{"type":"\u0063ustom"}]}`, false, 600, 0},
		{`{"functions":[{"name":"f"}]}`, false, 600, 0},
		{`{"tools":[{"name":"f","inputSchema":{},"annotations":{"title":"t"},"_meta":{},"googleSearch":null}]}`, false, 600, 0},
		{`{"tools":[]}`, false, 0, 0},
		{`{"messages":[{"content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":{"type":"custom"}}},` +
			`{"type":"tool_removal","tool":{"type":"tool_reference","name":"f"}}]}]}`, false, 600, 0},
		{`{"tools":[{"type":"bash_20250124"}]}`, true, 3000, 0},
		{`{"tools":[{"type":"text_editor_20250728"}]}`, true, 3000, 0},
		{`{"tools":[{"type":"computer_20251124"},{"type":"custom"}]}`, true, 3000, 0},
		{`{"tools":[{"type":"computer_toolset_20260801","configs":{"type":{"enabled":true}}}]}`, true, 3000, 0},
		{`{"tools":[{"type":"browser_toolset_20260801","configs":{"navigate":{"enabled":false}}}]}`, true, 3000, 0},
		{`{"tools":[{"type":"custom","name":"f","format":{"type":"grammar","syntax":"lark"}}]}`, false, 600, 0},
		{`{"tools":[{"type":"memory_20250818"}]}`, true, 600, 0},
		{`{"tools":[{"type":"tool_search_tool_regex_20251119"},{"type":"tool_search_tool_bm25"}]}`, true, 600, 0},
	} {
		for _, format := range textFormats {
			r, err := ReadRequest(Format(format), []byte(test.body))
			if err != nil {
				t.Fatalf("%s: %v", test.body, err)
			}
			isKnown := !test.claude || format == AnthropicMessages ||
				format == OpenAIResponses && strings.Contains(test.body, `"computer_`)
			if (r.ServerTool == "") != isKnown {
				t.Errorf("format %d, %s: the provider runs %q", format, test.body, r.ServerTool)
			}
			if got := r.HeldInput(Holding{BytesPerToken: 1}); got != int64(len(test.body))+test.need {
				t.Errorf("%s: %d tokens are held, want %d and %d", test.body, got, len(test.body), test.need)
			}
		}
	}
}

// Tools that the provider runs can be dropped if nothing else asks for them.
func TestDroppableTools(t *testing.T) {
	many := func(n int) string { return strings.Repeat(`{"type":"web"},`, n) }
	choices := strings.Repeat(`{"type":"custom"},`, maxChosen)
	for _, test := range []struct {
		body string
		want bool
	}{
		{`{"tools":[{"type":"web_search","name":"s"}]}`, true},
		{`{"tools":[{"type":"web_search"}],"tool_choice":"auto"}`, true},
		{`{"tools":[{"type":"web_search"}],"tool_choice":{"type":"any"}}`, true},
		{`{"tool_choice":{"type":"tool","name":"f"},"tools":[{"type":"web_search","name":"s"},{"name":"f"}]}`, true},
		{`{"tools":[{"type":"function"}]}`, false}, // there are none
		{`{"tool_choice":{"type":"tool","name":"s"},"tools":[{"type":"web_search","name":"s"}]}`, false},
		{`{"tools":[{"type":"web_search","name":"s"}],"tool_choice":{"type":"tool","name":"\u0073"}}`, false},
		{`{"tools":[{"type":"web_search"}],"tool_choice":{"type":"web_search"}}`, false},
		{`{"tools":[{"type":"web_search"}],"tool_choice":"web_search"}`, false},
		{`{"tools":[{"type":"web","name":"s"}],"tool_choice":{"type":"function","function":{"name":"s"}}}`, false},
		{`{"tools":[{"type":"web"}],"tool_choice":{"type":"allowed_tools","allowed_tools":{"mode":"auto","tools":[{"type":"web"}]}}}`,
			false},
		{`{"tools":[{"type":"web"}],"tool_choice":{"type":"allowed_tools","tools":[{"type":"custom"},{"type":"web"}]}}`, false},
		{`{"tools":[{"type":"web"}],"mcp_servers":[{}]}`, false},
		{`{"tools":[{"type":"web"}],"container":{"skills":[{}]}}`, false},
		{`{"tools":[{"type":"web"}],"messages":[{"content":[{"type":"invented"}]}]}`, false},
		{`{"tools":[{"type":"web"}],"messages":[{"content":[{"type":"tool_addition","tool":{"type":"web"}}]}]}`, false},
		{`{"tools":[` + many(maxDropped) + `{}]}`, true},
		{`{"tools":[` + many(maxDropped+1) + `{}]}`, false},
		{`{"tools":[{"type":"web"}],"tool_choice":{"tools":[` + choices + `{"type":"web"}]}}`, false},
	} {
		r, err := ReadRequest(AnthropicMessages, []byte(test.body))
		if err != nil {
			t.Fatalf("%.200s: %v", test.body, err)
		}
		if r.CanDropTools != test.want {
			t.Errorf("%.200s: can be dropped: %v, want %v", test.body, r.CanDropTools, test.want)
		}
	}
}

func TestAdvisorModels(t *testing.T) {
	checkRequests(t, AnthropicMessages, []requestTest{
		{"advisor", `{"tools":[{"type":"advisor_20260301","name":"a","model":"big"},{"model":"big"},{"model":null}]}`,
			` n=1 limit=0 tools server:advisor_20260301 (can be dropped) models:[big]`},
		{"in a message", `{"messages":[{"content":[{"type":"tool_addition","tool":{"type":"tool_definition","definition":` +
			`{"model":"\u0061","type":"advisor_20260301","caching":{"type":"ephemeral","ttl":"1h"}}}}]}]}`,
			` n=1 limit=0 tools cached for an hour server:advisor_20260301 models:[a]`},
	})
	many := ""
	for i := range maxAdvisor + 1 {
		many += fmt.Sprintf(`,{"model":"m%d"}`, i)
	}
	_, err := ReadRequest(AnthropicMessages, []byte(`{"tools":[{}`+many+`]}`))
	if err == nil || err.Error() != "The tools name more than 16 models" {
		t.Errorf("got %v", err)
	}
}
