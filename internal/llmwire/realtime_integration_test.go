//go:build integration

package llmwire

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

var (
	realtimeInterface = regexp.MustCompile(`(?ms)^export interface (\w+) \{$(.*?)^\}$`)
	interfaceMember   = regexp.MustCompile(`(?m)^ {4}(\w+)\??: (.*);$`)
	stringType        = regexp.MustCompile(`^'([^']*)'$`)
)

// Every event, member and item that the types of OpenAI's SDK allow a client to send in a session is one that was
// looked at.
func TestIntegrationRealtimeTypes(t *testing.T) {
	source, err := os.ReadFile("../../testdata/sdk/node_modules/openai/resources/realtime/realtime.d.ts")
	if err != nil {
		t.Fatalf("`make integration` installs the SDKs: %v", err)
	}
	types := make(map[string]map[string]string) // of the members, by interface and name
	for _, found := range realtimeInterface.FindAllStringSubmatch(string(source), -1) {
		members := make(map[string]string)
		for _, member := range interfaceMember.FindAllStringSubmatch(found[2], -1) {
			members[member[1]] = member[2]
		}
		types[found[1]] = members
	}
	kindOf := func(name string) string {
		if kind := stringType.FindStringSubmatch(types[name]["type"]); kind != nil {
			return kind[1]
		}
		t.Errorf("%s has no type", name)
		return ""
	}
	union := func(name string) []string {
		found := regexp.MustCompile(`(?m)^export type ` + name + ` = (.*);$`).FindStringSubmatch(string(source))
		if found == nil {
			t.Fatalf("there is no %s", name)
		}
		return strings.Split(found[1], " | ")
	}
	for _, name := range union("RealtimeClientEvent") {
		kind, ok := realtimeTypes[kindOf(name)]
		if !ok {
			t.Errorf("%s is not known", name)
		}
		for member := range types[name] {
			if kind.members&scanNames[inEvent][member] == 0 {
				t.Errorf("%s.%s is not known", name, member)
			}
		}
	}
	for _, name := range union("ConversationItem") {
		column := realtimeItems.of([]byte(kindOf(name)))
		if column == unlisted {
			t.Errorf("%s is not known", name)
		}
		for member := range types[name] {
			if column == known && scanNames[inItem][member] == 0 {
				t.Errorf("%s.%s is not known", name, member)
			}
		}
	}
	event := func(path ...string) *jsonShape[realtimeReader] {
		shape := realtimeShape
		for _, name := range path {
			shape = shape.members[name]
		}
		return shape
	}
	for name, shape := range map[string]*jsonShape[realtimeReader]{
		"RealtimeSessionCreateRequest": event("session"),
		"RealtimeResponseCreateParams": event("response"),
		"RealtimeAudioConfigInput":     event("session", "audio", "input"),
		"RealtimeAudioConfigOutput":    event("session", "audio", "output"),
		"AudioTranscription":           event("session", "audio", "input", "transcription"),
		"RealtimeReasoning":            event("session", "reasoning"),
		"RealtimeFunctionTool":         event("session", "tools").elements,
	} {
		if len(types[name]) == 0 {
			t.Errorf("there is no %s", name)
		}
		for _, member := range slices.Sorted(maps.Keys(types[name])) {
			if shape.members[member] == nil {
				t.Errorf("%s.%s is not known", name, member)
			}
		}
	}
}
