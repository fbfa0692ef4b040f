package llmwire

var openAIEmbeddings = openAI(format{
	kind:      Embeddings,
	urlSuffix: "/embeddings",

	rules:   requestRules{members: newColumnTable(openAIMembers)},
	request: newJSONShape(requestMembers),
	report:  newJSONShape(reportMembers),
})
