"""Whether conditioning explains speed: interventions compared, dose and response, mediation, rankings."""
