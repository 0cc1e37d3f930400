// Fill Go templates in as Ollama does: with .Messages, .System and nothing else of it needed here.
// main < [{"template": "...", "conversations": [[{"role": "user", "content": "..."}]]}] > [["..."]]
package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type message struct{ Role, Content string }

type job struct {
	Template      string
	Conversations [][]message
}

func main() {
	var jobs []job
	if err := json.NewDecoder(os.Stdin).Decode(&jobs); err != nil {
		panic(err)
	}
	rendered := [][]string{}
	for _, one := range jobs {
		parsed := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		texts := []string{}
		for _, messages := range one.Conversations {
			var text strings.Builder
			if err := parsed.Execute(&text, map[string]any{"Messages": messages, "System": "", "Response": ""}); err != nil {
				panic(err)
			}
			texts = append(texts, text.String())
		}
		rendered = append(rendered, texts)
	}
	if err := json.NewEncoder(os.Stdout).Encode(rendered); err != nil {
		panic(err)
	}
}
