"""The page that `report` fills in; Python, since an app bundle carries nothing else."""

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }} &ndash; fl-app</title>
<style>
:root { color-scheme: light dark; --line: #8885; --soft: #8881; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto;
       padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin-top: 2.5rem; }
.what { margin-top: .25rem; opacity: .8; }
.figures { display: grid; gap: .75rem; padding: 0;
           grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); }
.figures div { border: 1px solid var(--line); border-radius: .5rem;
               padding: .6rem .8rem; }
.figures dt { font-size: .85rem; opacity: .8; }
.figures dd { margin: 0; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.remarks { border: 1px solid var(--line); border-left: .4rem solid #d90;
           border-radius: .5rem; padding: .6rem 1rem; margin: 1.5rem 0;
           overflow-wrap: anywhere; }
.remarks h2 { margin: 0; font-size: 1.1rem; }
.remarks ul { margin: .4rem 0 0; padding-left: 1.2rem; }
img { max-width: 100%; background: white; border-radius: .5rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; white-space: nowrap;
         border-bottom: 1px solid var(--line); }
th { font-weight: 600; } .text { text-align: left; white-space: normal; }
pre, code { background: var(--soft); border-radius: .3rem; }
code { padding: .1rem .3rem; } pre { padding: .8rem; overflow-x: auto; }
pre code { padding: 0; background: none; }
summary { cursor: pointer; }
</style>
</head>
<body>
<h1>{{ name }}</h1>
<p class="what">{{ options.dataset }}, {{ options.model }},
{{ options.strategy if options.regime == "federated" else options.regime }},
divided by {{ options.partitioner }}, seed {{ options.seed }}</p>
{% if data %}
<p class="what">Data: {{ data }}.</p>
{% endif %}

<dl class="figures">
{% for label, value in figures %}
<div><dt>{{ label }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>

{% if remarks %}
<div class="remarks" role="note">
<h2>Please note</h2>
<ul>
{% for remark in remarks %}
<li>{{ remark }}</li>
{% endfor %}
</ul>
</div>
{% endif %}

<h2>Curves</h2>
{% for name, picture in pictures %}
{% if loop.last %}
<h2>Who owns what</h2>
{% endif %}
{% if picture %}
<img src="{{ picture }}" alt="{{ 'Accuracy and loss per round' if loop.first
                              else 'Training examples per client and class' }}">
{% else %}
<p>{{ name }} was not drawn.</p>
{% endif %}
{% endfor %}

{% if summary.per_class_accuracy %}
<h2>Test accuracy by class</h2>
<div class="wide"><table>
<tr>{% for _ in summary.per_class_accuracy %}<th>{{ loop.index0 }}</th>{% endfor %}</tr>
<tr>{% for value in summary.per_class_accuracy %}
<td>{{ "none" if value is none else "%.3f" | format(value) }}</td>
{% endfor %}</tr>
</table></div>
{% endif %}

<h2>Clients</h2>
{% if num_clients > clients | length %}
<p>The first {{ clients | length }} of {{ num_clients }}; all are in
<code>clients.jsonl</code>.</p>
{% endif %}
<div class="wide"><table>
<tr><th>client</th><th class="text">name</th><th>examples</th><th>rounds</th>
<th>left out</th><th>validation accuracy</th><th>last training loss</th>
<th>last update norm</th><th>seconds</th></tr>
{% for c in clients %}
<tr><td>{{ c.client }}</td><td class="text">{{ c.name }}</td>
<td>{{ "" if c.examples is none else c.examples }}</td>
<td>{{ c.rounds }}</td><td>{{ c.failures }}</td>
<td>{{ "" if c.accuracy is none else "%.4f" | format(c.accuracy) }}</td>
<td>{{ "" if c.train_loss is none else "%.4f" | format(c.train_loss) }}</td>
<td>{{ "" if c.update_norm is none else "%.4g" | format(c.update_norm) }}</td>
<td>{{ "%.1f" | format(c.seconds) }}</td></tr>
{% endfor %}
</table></div>

<h2>Failures</h2>
{% if failures %}
{% if num_failures > failures | length %}
<p>The first {{ failures | length }} of {{ num_failures }}; all are in
<code>clients.jsonl</code>.</p>
{% endif %}
<div class="wide"><table>
<tr><th>round</th><th>client</th><th class="text">reason</th></tr>
{% for f in failures %}
<tr><td>{{ f.round }}</td><td>{{ f.client }}</td>
<td class="text">{{ f.failure }}</td></tr>
{% endfor %}
</table></div>
{% else %}
<p>None: no client was left out of a round.</p>
{% endif %}

<h2>Rounds</h2>
<details><summary>{{ rows | length }} rows</summary>
<div class="wide"><table>
<tr>{% for key in rows[0] %}<th>{{ key.replace("_", " ") }}</th>{% endfor %}</tr>
{% for row in rows %}
<tr>{% for value in row.values() %}<td>{{ "" if value is none else
  "%.4f" | format(value) if value is float else value }}</td>{% endfor %}</tr>
{% endfor %}
</table></div></details>

<h2>How to repeat it</h2>
<pre><code>{{ command }}</code></pre>
<p>With the versions below, on a machine of the same kind, it ends with
<code>model_sha256</code> <code>{{ summary.model_sha256 }}</code>
{%- if num_failures %}, if the same clients are left out{% endif %}
{%- if options["clients-together"] > 1 %}, on as many nodes{% endif %}.</p>
{% for again in resumed %}
<p>It was stopped and went on after round {{ again.after_round }}.</p>
{% endfor %}

<h2>Environment</h2>
<div class="wide"><table>
{% for key, value in config.items() %}
{% if value is mapping %}
{% for inner, text in value.items() %}
<tr><th class="text">{{ inner }}</th><td class="text">{{ text }}</td></tr>
{% endfor %}
{% else %}
<tr><th class="text">{{ key.replace("_", " ") }}</th>
<td class="text">{{ value }}</td></tr>
{% endif %}
{% endfor %}
</table></div>

<h2>Options</h2>
<details><summary>All, as resolved</summary>
<div class="wide"><table>
{% for key, value in options.items() %}
<tr><th class="text">{{ key }}</th><td class="text">{{ value }}</td></tr>
{% endfor %}
</table></div></details>
</body>
</html>
"""
