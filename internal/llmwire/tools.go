package llmwire

import (
	"cmp"
	"slices"
	"strings"

	"tollgate/internal/strict"
)

const (
	maxDropped = 128 // tools that can be taken out of a request
	maxChosen  = 128 // names in tool_choice beside which any can be
	maxAdvisor = 16  // models that tools may name
)

// toolMembers are the definitions of tools, at the top level, in messages and in other tools, and the choice of one.
var toolMembers = jsonTable[Request]{
	"tools":           {read: (*Request).readArray},
	"functions":       {read: (*Request).readArray},
	"tools[]":         {enter: (*Request).beginTool, read: (*Request).endTool, each: (*Request).checkToolMember},
	"tools[].tools[]": {same: "tools[]"}, // of a namespace

	"messages[].tools[]":        {same: "tools[]"},
	"messages[].tool":           {same: "tools[]"}, // is added, removed or defined
	"tools[].definition":        {same: "tools[]"},
	"messages[].tool_changes[]": {same: "messages[]"},
	"tools[].type":              {read: (*Request).readToolType},
	"tools[].name":              {read: (*Request).readToolName},
	"tools[].model":             {read: (*Request).readToolModel},
	"tools[].description":       {read: (*Request).readText},
	"tools[].input_schema":      {read: (*Request).readSchema},
	"tools[].parameters":        {read: (*Request).readSchema},
	"tools[].format":            {read: (*Request).readSchema}, // of a custom tool of OpenAI's other API
	"tools[].function":          {same: "functions[]"},
	"tools[].custom":            {same: "functions[]"},
	"tools[].cache_control":     {same: "cache_control"},
	"tools[].caching":           {same: "cache_control"}, // of what an advisor reads
	"functions[]":               {read: (*Request).readFunction},
	"functions[].name":          {read: (*Request).readText},
	"functions[].description":   {read: (*Request).readText},
	"functions[].parameters":    {read: (*Request).readSchema},
	"functions[].format":        {read: (*Request).readSchema},
	"functions[].cache_control": {same: "cache_control"}, // at OpenRouter and LiteLLM
	"tool_choice":               {read: (*Request).readChoice},
	"tool_choice.type":          {read: (*Request).readChoice},
	"tool_choice.name":          {read: (*Request).readChoice},
	"tool_choice.server_label":  {read: (*Request).readChoice},
	"tool_choice.function":      {same: "tool_choice"},
	"tool_choice.custom":        {same: "tool_choice"},
	"tool_choice.allowed_tools": {same: "tool_choice"},
	"tool_choice.tools[]":       {same: "tool_choice"},
}

// A toolReader reads the tools of a request.
type toolReader struct {
	reading []tool // that is being read, after those around it
	count   int    // in tools
	exist   bool   // anywhere

	needMore    bool // for the prompt that a provider adds, for one of them
	isElsewhere bool // something that the provider runs does not stand in tools

	server []serverTool // in tools; one more than maxDropped if there are too many
	chosen [][]byte     // strings of tool_choice, as they are spelled; one more than maxChosen if there are too many
}

// A tool is a definition that is being read.
type tool struct {
	isServer   bool   // the provider runs it, or one in it
	kind, name []byte // as they are spelled

	environment, execution toolPlace
}

// A toolPlace is what a member of a tool says of where it runs.
type toolPlace struct {
	decides           bool // for the type of the tool: it runs at the client only if the member says so
	isClient, isOther bool // it says so, or anything else
	hasType           bool // the object that is being read has a type
}

func (p *toolPlace) isServer() bool { return p.decides && (p.isOther || !p.isClient) }

// set notes a value that says where a tool runs.
func (p *toolPlace) set(isClient bool) {
	p.hasType = true
	p.isClient, p.isOther = p.isClient || isClient, p.isOther || !isClient
}

// A serverTool is a tool that the provider runs.
type serverTool struct {
	tool
	at span
}

func (r *Request) readFunction(jsonValue) { r.tools.exist = true }

func (r *Request) beginTool() { r.tools.reading = append(r.tools.reading, tool{}) }

// tool returns the innermost tool that is being read.
func (r *Request) tool() *tool { return &r.tools.reading[len(r.tools.reading)-1] }

func (r *Request) endTool(v jsonValue) {
	t := &r.tools
	if v.text[0] != '{' && !v.isNull() {
		r.addTool(v) // a name, perhaps
	}
	if one := r.tool(); one.environment.isServer() || one.execution.isServer() {
		one.isServer = true
		r.addServerType(unquoted(one.kind))
	}
	last := len(t.reading) - 1
	read := t.reading[last]
	t.reading, t.exist = t.reading[:last], true
	switch {
	case last > 0:
		t.reading[last-1].isServer = t.reading[last-1].isServer || read.isServer
	case len(r.parts) > 0:
		t.isElsewhere = t.isElsewhere || read.isServer
	default:
		t.count++
		if read.isServer && len(t.server) <= maxDropped {
			t.server = append(t.server, serverTool{read, v.span()})
		}
	}
}

// readToolType reads the type of a tool. Any that is not known to run at the client counts as one that the provider
// runs.
func (r *Request) readToolType(v jsonValue) {
	if v.isNull() {
		return
	}
	kind := unquoted(v.text)
	r.tool().kind = v.text
	r.tools.needMore = r.tools.needMore || slices.ContainsFunc(definedTools, func(name string) bool {
		return strings.HasPrefix(string(kind), name)
	})
	switch c := r.rules.tools.of(kind); {
	case c == known, r.isToolChange(kind):
	case c == ruled && string(kind) == "shell":
		r.tool().environment.decides = true
	case c == ruled:
		r.tool().execution.decides = true
	default:
		r.addTool(v)
	}
}

// checkToolMember reads a member of a tool. One with an object that is not known may be a tool of the provider's own,
// as {"googleSearch": {}} is for LiteLLM, whatever the type says.
func (r *Request) checkToolMember(object *jsonShape[Request], name []byte, v jsonValue) {
	r.checkCase(object, name)
	if v.text[0] == '{' && object.members[string(name)] == nil && !slices.Contains(toolObjects, string(name)) {
		r.tool().isServer = true
		r.addServerType(name)
	}
}

// toolObjects has the members of tools with objects that describe a tool of the client's: those of MCP, in which some
// clients send their tools, what is only noted, and which of the tools of a toolset are offered (BetaBrowserToolset and
// BetaComputerToolset of Anthropic's SDKs).
var toolObjects = []string{"_meta", "annotations", "configs", "execution", "inputSchema", "metadata", "outputSchema"}

// definedTools has how the types of tools begin that the provider has defined, and for which it adds a long prompt.
var definedTools = []string{"bash_", "browser_", "computer_", "text_editor_"}

// isToolChange reports whether a tool in a message is no tool but a change: the definition of one, or a name.
func (r *Request) isToolChange(kind []byte) bool {
	return len(r.parts) > 0 && (string(kind) == "tool_definition" || string(kind) == "tool_reference")
}

// addTool notes that the provider runs the tool that is being read, by its type.
func (r *Request) addTool(kind jsonValue) {
	r.tool().isServer = true
	r.addServerType(unquoted(kind.text))
}

// addServerType notes a tool or a part of a type that the provider may run.
func (r *Request) addServerType(kind []byte) {
	if r.ServerTool == "" {
		r.ServerTool = cmp.Or(strict.Shorten(string(kind)), "(empty)")
	}
}

func (r *Request) readToolName(v jsonValue) {
	r.tool().name = v.text
	r.readText(v)
}

// readToolModel reads the model that a tool names.
func (r *Request) readToolModel(v jsonValue) {
	if v.isNull() {
		return
	}
	switch model := string(unquoted(v.text)); {
	case slices.Contains(r.AdvisorModels, model):
	case len(r.AdvisorModels) < maxAdvisor:
		r.AdvisorModels = append(r.AdvisorModels, model)
	default:
		r.fail("The tools name more than %d models", maxAdvisor)
	}
}

func (r *Request) readChoice(v jsonValue) {
	if v.text[0] == '"' && len(r.tools.chosen) <= maxChosen {
		r.tools.chosen = append(r.tools.chosen, v.text)
	}
}

// canDrop reports whether all tools that the provider runs can be taken out of tools.
func (t *toolReader) canDrop() bool {
	if t.isElsewhere || len(t.server) == 0 || len(t.server) > maxDropped || len(t.chosen) > maxChosen {
		return false
	}
	chosen := make(map[string]bool)
	for _, name := range t.chosen {
		chosen[string(unquoted(name))] = true
	}
	return !slices.ContainsFunc(t.server, func(s serverTool) bool {
		return s.kind != nil && chosen[string(unquoted(s.kind))] || s.name != nil && chosen[string(unquoted(s.name))]
	})
}
