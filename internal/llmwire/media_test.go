package llmwire

import (
	"fmt"
	"testing"
)

// userPart returns a request with a content part.
func userPart(part string) string { return `{"messages":[{"role":"user","content":[` + part + `]}]}` }

const noMedia = "0 media, 0 files [], 0 bytes of base64"

// Base64 is subtracted only if it surely is the data of a medium. What is not in the body is of unknown size.
func TestMedia(t *testing.T) {
	checkMedia(t, []requestTest{
		{"text", userPart(`{"type":"text","text":"QUJD"}`), noMedia},
		{"string", `{"messages":[{"role":"user","content":"data:image/png;base64,QUJD"}]}`, noMedia},
		{"image URL", userPart(`{"type":"image_url","image_url":{"url":"https://example.com/a.png"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"data URL", userPart(`{"type":"image_url","image_url":{"detail":"low","url":"data:image/png;base64,QUJDRA=="}}`),
			"1 media, 0 files [], 8 bytes of base64 images"},
		{"data URL as a string", userPart(`{"image_url":"data:image/png;base64,QUJD","type":"image_url"}`),
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"input image", userPart(`{"type":"input_image","image_url":"data:image/png;base64,QUJD"}`),
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"no type", userPart(`{"image_url":{"url":"data:image/png;base64,QUJD"}}`),
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"images of an assistant", `{"messages":[{"role":"assistant","content":"here","images":[` +
			`{"type":"image_url","image_url":{"url":"data:image/png;base64,QUJD"}},{"image_url":"data:;base64,QUJD"}]}]}`,
			"2 media, 0 files [], 8 bytes of base64 images"},
		{"escaped slash", userPart(`{"type":"image_url","image_url":{"url":"data:image\/png;base64,QU\/JD"}}`),
			"1 media, 0 files [], 6 bytes of base64 images"},
		{"text as URL", userPart(`{"type":"image_url","image_url":{"url":"data:text/plain;base64,QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"JSON as URL", userPart(`{"type":"image_url","image_url":{"url":"data:application/json;base64,QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"escaped text as URL", userPart(`{"type":"image_url","image_url":{"url":"data:\u0074ext/plain;base64,QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"plain data URL", userPart(`{"type":"image_url","image_url":{"url":"data:image/svg+xml,QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"words", userPart(`{"type":"image_url","image_url":{"url":"data:image/png;base64,ignore all of this"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"escapes", userPart(`{"type":"image_url","image_url":{"url":"data:image/png;base64,QUJD\n"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"PDF as image URL", userPart(`{"type":"image_url","image_url":{"url":"data:application/pdf;base64,QUJD"}}`),
			"0 media, 0 files [3], 4 bytes of base64 images"},
		{"video as image URL", userPart(`{"type":"image_url","image_url":{"url":"data:video/mp4;base64,QUJD"}}`),
			"0 media, 0 files [3], 4 bytes of base64 audio images"},
		{"audio", userPart(`{"type":"input_audio","input_audio":{"data":"QUJD","format":"wav"}}`),
			"1 media, 0 files [], 4 bytes of base64 audio"},
		{"audio URL", userPart(`{"type":"audio_url","audio_url":{"url":"https://example.com/a.wav"}}`),
			"1 media, 0 files [], 0 bytes of base64 audio"},
		{"audio of an earlier response", `{"messages":[{"role":"assistant","audio":{"id":"audio_1"}},{"audio":null}]}`,
			"1 media, 0 files [], 0 bytes of base64 audio"},
		{"video", userPart(`{"type":"video_url","video_url":{"url":"https://example.com/a.mp4"}}`),
			"0 media, 1 files [], 0 bytes of base64 audio images"},
		{"video in the body", userPart(`{"type":"video_url","video_url":{"url":"data:video/mp4;base64,QUJDREVG"}}`),
			"0 media, 0 files [6], 8 bytes of base64 audio images"},
		{"file", userPart(`{"type":"file","file":{"file_data":"data:application/pdf;base64,QUJD","filename":"a"}}`),
			"0 media, 0 files [3], 4 bytes of base64 images"},
		{"bare file", userPart(`{"type":"file","file":{"file_data":"QUJD","filename":"a"}}`),
			"0 media, 0 files [3], 4 bytes of base64 images"},
		{"file at a URL", userPart(`{"type":"file","file":{"file_data":"https://example.com/a.pdf"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"text file", userPart(`{"type":"file","file":{"file_data":"data:text/csv;base64,QUJD"}}`),
			"0 media, 0 files [], 0 bytes of base64 images"},
		{"file ID", userPart(`{"type":"file","file":{"file_id":"QUJD"}}`), "0 media, 1 files [], 0 bytes of base64 images"},
		{"URL beside data", userPart(`{"type":"file","file":{"file_data":"QUJD","file_url":"https://example.com/a.pdf"}}`),
			"0 media, 1 files [], 4 bytes of base64 images"},
		{"other URL beside data", userPart(`{"type":"file","file":{"url":"https://example.com/a.pdf","file_data":"QUJD"}}`),
			"0 media, 1 files [], 4 bytes of base64 images"},
		{"file ID beside data", userPart(`{"type":"file","file":{"file_data":"QUJD","file_id":"file_1"}}`),
			"0 media, 1 files [], 4 bytes of base64 images"},
		{"empty file", userPart(`{"type":"file"}`), "0 media, 1 files [], 0 bytes of base64 images"},
		{"document URL", userPart(`{"type":"document_url","document_url":"https://example.com/a.pdf"}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
	})
}

// The same is so for what has a source, in Anthropic's format.
func TestMediaSources(t *testing.T) {
	checkMedia(t, []requestTest{
		{"image", userPart(`{"type":"image","source":{"type":"base64","media_type":"image/png","data":"QUJD"}}`),
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"document as an image", userPart(`{"type":"image","source":{"type":"base64","media_type":"application/pdf","data":"QUJD"}}`),
			"0 media, 0 files [3], 4 bytes of base64 images"},
		{"video as an image", userPart(`{"source":{"media_type":"Video/mp4","data":"QUJD"},"type":"image"}`),
			"0 media, 0 files [3], 4 bytes of base64 audio images"},
		{"sound as an image", userPart(`{"type":"image","source":{"type":"url","media_type":"audio/mp3","url":"https://example.com"}}`),
			"1 media, 0 files [], 0 bytes of base64 audio"},
		{"data first", userPart(`{"source":{"data":"QUJD","type":"base64"},"type":"document"}`),
			"0 media, 0 files [3], 4 bytes of base64 images"},
		{"document URL of Anthropic's", userPart(`{"type":"document","source":{"type":"url","url":"https://example.com"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"document by ID", userPart(`{"type":"document","source":{"type":"file","file_id":"file_1"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"document of a new kind", userPart(`{"type":"document","source":{"type":"drive","data":"QUJD"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"text document", userPart(`{"type":"document","source":{"type":"text","data":"QUJD"}}`),
			"0 media, 0 files [], 0 bytes of base64 images"},
		{"text document, data first", userPart(`{"type":"document","source":{"data":"QUJD","type":"text"}}`),
			"0 media, 0 files [], 0 bytes of base64 images"},
		{"two types", userPart(`{"type":"document","source":{"type":"text","data":"QUJD","type":"base64"}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"two sources", userPart(`{"type":"image","source":{"type":"base64"},"source":{"type":"text","data":"QUJD"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"not a medium", userPart(`{"type":"text","source":{"type":"base64","data":"QUJD"}}`), noMedia},
		{"first a medium", userPart(`{"type":"image_url","type":"text","image_url":"https://example.com"}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"escaped type", userPart(`{"type":"\u0069mage","source":{"type":"url","url":"https://example.com"}}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"result of a tool", userPart(`{"type":"tool_result","content":[{"type":"text","text":"x"},` +
			`{"type":"image","source":{"type":"base64","data":"QUJD"}}]},{"type":"image","source":{"type":"url"}}`),
			"2 media, 0 files [], 4 bytes of base64 images"},
		{"document of parts", userPart(`{"type":"document","source":{"type":"content","content":[` +
			`{"type":"image","source":{"type":"base64","data":"QUJD"}}]}}`), "1 media, 0 files [], 4 bytes of base64 images"},
		{"fetched document", userPart(`{"type":"web_fetch_tool_result","content":{"type":"web_fetch_result","content":` +
			`{"type":"document","source":{"type":"url","url":"https://example.com"}}}}`),
			"0 media, 1 files [], 0 bytes of base64 images"},
		{"inner part does not hide a text",
			userPart(`{"source":{"type":"text","content":[{}],"data":"QUJD"},"type":"image"}`),
			"1 media, 0 files [], 0 bytes of base64 images"},
		{"system prompt", `{"system":[{"type":"image","source":{"type":"base64","data":"QUJD"}}]}`,
			"1 media, 0 files [], 4 bytes of base64 images"},
		{"input of a tool", userPart(`{"type":"tool_use","input":{"type":"file","files":[{"type":"file"}]}}`), noMedia},
		{"tools", `{"tools":[{"type":"image","source":{"type":"base64","data":"QUJD"}}]}`, noMedia},
	})
}

func checkMedia(t *testing.T, tests []requestTest) {
	t.Helper()
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r, err := ReadRequest(OpenAIChat, []byte(test.body))
			if err != nil {
				t.Fatalf("%s: %v", test.body, err)
			}
			in := &r.input
			got := fmt.Sprintf("%d media, %d files %v, %d bytes of base64", in.media, in.files, in.fileBytes, in.base64)
			if r.HasAudio {
				got += " audio"
			}
			if r.HasImages {
				got += " images"
			}
			if got != test.want {
				t.Errorf("%s\ngot  %s\nwant %s", test.body, got, test.want)
			}
		})
	}
}
