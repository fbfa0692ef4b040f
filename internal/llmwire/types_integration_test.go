//go:build integration

package llmwire

import (
	"cmp"
	"encoding/json"
	"fmt"
	"os/exec"
	"regexp"
	"slices"
	"testing"
)

// sdkTypes is what testdata/sdk/types.mjs prints of a format. A place is a path of members, as it says.
type sdkTypes struct {
	Members []string            // at the top level
	Values  map[string][]string // the strings that a top-level member may have
	Types   map[string][]string // the values of type at a place
	Models  []string            // the places where a model is named
}

// The places whose objects may add to the cost of a request, depending on their type. The others are parts of these, or
// of members that are known as a whole.
var (
	toolPlaces = regexp.MustCompile(`(^|\.)(tools\[\]|tool|definition)$`)
	partPlaces = regexp.MustCompile(`(^|\.)(content|content\[\]|system\[\]|tool_changes\[\]|` +
		`input\[\]|summary\[\]|output|output\[\]|outputs\[\])$`)
)

// Every member, content part and tool that the types of the official SDKs allow in a request is in a column of the
// tables, and every other value and model is one that was looked at.
func TestIntegrationTypes(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Fatalf("Node.js reads the types of the SDKs (`make integration` installs it): %v", err)
	}
	out, err := exec.Command("node", "../../testdata/sdk/types.mjs").Output()
	if err != nil {
		t.Fatalf("`make integration` installs the SDKs: %v", err)
	}
	var printed map[string]sdkTypes
	if err := json.Unmarshal(out, &printed); err != nil {
		t.Fatal(err)
	}
	for name, format := range map[string]Format{
		"chat": OpenAIChat, "messages": AnthropicMessages, "responses": OpenAIResponses,
		"embeddings": OpenAIEmbeddings, "moderations": OpenAIModerations, "images": OpenAIImages,
		"speech": OpenAISpeech, "transcriptions": OpenAITranscriptions, "translations": OpenAITranslations,
	} {
		t.Run(name, func(t *testing.T) {
			types := printed[name]
			wantListed(t, format, types)
			wantPriced(t, format, types)
		})
	}
}

// wantListed reports the names that are in no column of a table.
func wantListed(t *testing.T, format Format, types sdkTypes) {
	t.Helper()
	rules, found := formats[format].rules, 0
	for _, name := range types.Members {
		if found++; rules.members.of([]byte(name)) == unlisted {
			t.Errorf("the member %s is in no column", name)
		}
	}
	for place, names := range types.Types {
		for _, name := range names {
			switch {
			case toolPlaces.MatchString(place):
				if found++; rules.tools.of([]byte(name)) == unlisted && !slices.Contains(toolChanges, name) {
					t.Errorf("the tool %s, at %s, is in no column", name, place)
				}
			case partPlaces.MatchString(place):
				if found++; partTypes.of([]byte(name)) == unlisted && rules.parts.of([]byte(name)) == unlisted {
					t.Errorf("the part %s, at %s, is in no column", name, place)
				}
			}
		}
	}
	least := map[Format]int{OpenAIEmbeddings: 5, OpenAIModerations: 2, OpenAIImages: 19,
		OpenAISpeech: 7, OpenAITranscriptions: 14, OpenAITranslations: 5}
	if least := cmp.Or(least[format], 40); found < least {
		t.Errorf("the types have only %d members, tools and parts, want %d", found, least)
	}
}

// toolChanges stand in a message where a tool can, and name or define one. Those of MCP count as what the provider runs,
// as all unlisted ones do.
var toolChanges = []string{"mcp_tool_reference", "mcp_toolset_reference", "tool_definition", "tool_reference"}

// wantPriced reports values and places of models that the tables do not list.
func wantPriced(t *testing.T, format Format, types sdkTypes) {
	t.Helper()
	sameCost := map[string][]string{
		"service_tier": {"auto", "default", "flex", "standard_only"}, "speed": {"standard"},
		"output_format": {"png", "jpeg", "webp"}, "quality": {"auto", "low", "medium", "high", "standard", "hd"},
		"size": {"auto", "256x256", "512x512", "1024x1024", "1024x1536", "1536x1024"},
	}
	for member, values := range types.Values {
		for _, value := range values {
			if sameCost[member] == nil || slices.Contains(sameCost[member], value) {
				continue
			}
			r, err := ReadRequest(format, fmt.Appendf(nil, `{%q:%q}`, member, value))
			if err != nil || !slices.Equal(r.Unknown, []string{member}) {
				t.Errorf("%s %q is not unknown: %v, %v", member, value, r.Unknown, err)
			}
		}
	}
	read := []string{
		"advisor_20260301.model", "fallback.from.model", "fallback.to.model", "fallbacks[].model", "moderation.model",
		"image_generation.model", "image_generation.svg.model", // of a tool that the provider runs
		"image_generation_call.svg_usage.model", // of an earlier response
		"svg.model",
	}
	for _, place := range types.Models {
		if !slices.Contains(read, place) {
			t.Errorf("a model is named at %s", place)
		}
	}
}
