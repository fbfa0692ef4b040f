package llmwire

var openAIImages = openAI(format{
	kind:      Images,
	urlSuffix: "/images/generations",

	rules:   requestRules{members: newColumnTable(openAIMembers)},
	request: newJSONShape(requestMembers),
	report:  newJSONShape(reportMembers),
})
