"""From noise to latents: the schedule, the sampler tables, the noise, the guidance and the loop.

Read in the order of the flow: `schedule` (which noise levels), `plan` (what a table is),
`samplers` (functions that make tables), `advance` (one row of a table), `noise`, `guidance`, `run`
(row after row in torch) and `denoise` (the loop). `ways` puts the usual schedules together, and
`foreign` lets other libraries' schedulers into the loop.
"""
